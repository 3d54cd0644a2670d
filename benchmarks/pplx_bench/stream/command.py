"""`pplx-edge bench stream`: memory and time, fidelity and retrieval quality of streaming late chunking.

Each measurement uses real text from one folder: whole books, contextual retrieval tasks, and passages.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplx_bench.options import add_output, add_subcommands, check_output
from pplx_bench.results import Result
from pplx_bench.shapes import SHAPES
from pplx_bench.stream import fidelity, many, quality, report, size
from pplx_bench.stream.setup import SEPARATORS, Setup
from pplx_bench.tables import heading
from pplx_edge.registry import BACKENDS
from pplx_edge.types import DEFAULT_CHUNK_TOKENS
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import positive


@dataclass(frozen=True, slots=True)
class Measurement:
    """A subcommand: its summary, options, results, tables and picture, and whether the results are acceptable."""

    summary: str
    add_options: Callable[[Any], None]
    measure: Callable[[Setup], list[Result]]
    table: Callable[[Sequence[Result]], str]
    draw: Callable[[Sequence[Result], Path], None] | None = None
    passed: Callable[[Sequence[Result]], bool] = lambda results: True


MEASUREMENTS = {
    "size": Measurement(
        "measure memory and pace by length, next to late chunking of the whole document in torch",
        size.add_options,
        size.measure,
        report.size_tables,
        report.draw_size,
        size.passed,
    ),
    "fidelity": Measurement(
        "compare vectors of windows with those of the full context",
        fidelity.add_options,
        fidelity.measure,
        report.fidelity_table,
        report.draw_fidelity,
    ),
    "quality": Measurement(
        "measure nDCG@10 of streamed chunks, next to chunks with and without context",
        quality.add_options,
        quality.measure,
        report.quality_tables,
        report.draw_quality,
    ),
    "many": Measurement(
        "measure the speed of encode_streams on many small documents, next to encode",
        many.add_options,
        many.measure,
        report.many_table,
    ),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add a subcommand for each measurement."""
    for name, sub in add_subcommands(parser, {name: each.summary for name, each in MEASUREMENTS.items()}).items():
        sub.add_argument(
            "data", type=Path, metavar="FOLDER", help="Contains longdocs.jsonl.gz and tasks in BEIR layout."
        )
        MEASUREMENTS[name].add_options(sub.add_argument_group(name))
        _add_model(sub.add_argument_group("model"))
        add_output(sub, "Append results, and do not measure those that are already there.")


def run(args: Namespace) -> int:
    """Measure and print. Returns 0, or 1 if a stream failed, or was long enough to judge and not flat."""
    check_output(args)
    measurement, setup = MEASUREMENTS[args.measurement], Setup(args)
    print(heading(setup.header), flush=True)
    results = measurement.measure(setup)
    print(f"\n{measurement.table(results)}", flush=True)
    if args.plot is not None and measurement.draw is not None:
        measurement.draw(results, args.plot / f"stream-{args.measurement}.svg")
    return 0 if measurement.passed(results) else 1


def _add_model(group: Any) -> None:
    add = group.add_argument
    add("--model", default=BUILT_IN, metavar="MODEL", help=f"Model to measure (default: {BUILT_IN}).")
    add("--shape", choices=SHAPES, help="Measure random weights of this shape instead of a model.")
    add("--layers", type=positive, metavar="N", help="Only the first N layers of the shape: a trial, not a result.")
    add("--backend", default="auto", choices=["auto", *BACKENDS], help="Runtime of the model (default: auto).")
    add("--weights", metavar="FORMAT", help="mlx: Quantize the weights to q8, q4, … while loading.")
    add("--threads", type=positive, metavar="N", help="onnx: Number of CPU threads (default: all cores).")
    add(
        "--chunk-tokens",
        type=positive,
        default=DEFAULT_CHUNK_TOKENS,
        metavar="N",
        help="Maximum length of a chunk in tokens (default: %(default)s).",
    )
    add("--separator", choices=SEPARATORS, default="auto", help="Separator between chunks (auto: the model's default).")
    add("--work", type=Path, metavar="DIR", help="Directory of checkpoints and logs (default: in the cache).")
