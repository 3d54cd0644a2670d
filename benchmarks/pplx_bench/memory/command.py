"""`pplx-edge bench memory`: peak memory of converting, and of opening and encoding, each in its own process."""

from argparse import ArgumentParser, Namespace

from pplx_bench import machine
from pplx_bench.memory.measure import LIMITS, measure
from pplx_bench.memory.report import memory_report
from pplx_bench.options import add_run_options, one_of, require_writable
from pplx_bench.shapes import add_shape_options, checkpoint_of
from pplx_bench.workdir import append_lines


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    add_shape_options(parser)
    parser.add_argument(
        "--formats", type=one_of(LIMITS), default=list(LIMITS), metavar="F,F", help=f"Default: {','.join(LIMITS)}."
    )
    add_run_options(parser)


def run(args: Namespace) -> int:
    """Measure and print. Return 0 if everything was measured, stayed below its limit and did not import torch."""
    require_writable(args.json, ".jsonl")
    results = list(measure(args.shape, args.formats, checkpoint_of(args), args.threads, args.work))
    settings = {"benchmark": "memory", "shape": args.shape, "layers": args.layers, "threads": args.threads}
    header = settings | machine.run()
    if args.json is not None:
        append_lines(args.json, [header | result for result in results])
    print(memory_report(header, results))
    return 0 if all(result["passed"] for result in results) else 1
