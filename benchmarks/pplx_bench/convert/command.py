"""`pplx-edge bench convert`: convert a model to every format, each in its own process."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from pplx_bench import machine
from pplx_bench.convert.measure import measure
from pplx_bench.convert.report import convert_report
from pplx_bench.options import add_run_options, one_of, require_writable
from pplx_bench.shapes import add_shape_options, checkpoint_of, shape_name
from pplx_bench.workdir import append_lines
from pplx_edge.backends import require_installed
from pplx_edge.errors import MissingExtra
from pplx_edge.registry import BACKENDS, all_formats
from pplx_edge.weights import hub
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import MODEL_HELP


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--model", default=BUILT_IN, metavar="MODEL", help=f"Model to convert, unless --shape is given: {MODEL_HELP}."
    )
    add_shape_options(parser, None)
    parser.add_argument(
        "--formats",
        type=one_of(all_formats()),
        default=_convertible(),
        metavar="F,F",
        help=f"Formats to convert to (default: all whose packages are installed): {', '.join(all_formats())}.",
    )
    parser.add_argument(
        "--limit-gb",
        type=float,
        metavar="GB",
        help="Exit with status 1 if the process of a conversion needs more resident memory (default: no limit).",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="Keep the converted models in this folder (default: delete each after it is measured).",
    )
    add_run_options(parser)


def _convertible() -> list[str]:
    """Return the formats whose packages are installed."""
    found = []
    for backend in BACKENDS.values():
        try:
            require_installed(backend)
        except MissingExtra:
            continue
        found += backend.formats
    return found


def run(args: Namespace) -> int:
    """Convert and print. Return 0 if every conversion succeeded within the limit."""
    require_writable(args.json, ".jsonl")
    name = f"{shape_name(args.shape, args.layers)} shape, random" if args.shape else args.model
    checkpoint = checkpoint_of(args) if args.shape else hub.locate(args.model)
    header = {"benchmark": "convert", "model": name, "layers": args.layers, "threads": args.threads} | machine.run()
    results = list(measure(checkpoint, args.formats, args.threads, args.work, args.keep, args.limit_gb))
    if args.json is not None:
        append_lines(args.json, [header | result for result in results])
    print(convert_report(header, results))
    return 0 if all(result["passed"] for result in results) else 1
