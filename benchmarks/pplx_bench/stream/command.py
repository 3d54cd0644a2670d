"""`pplx-edge bench stream`: memory and time, fidelity and retrieval quality of streaming late chunking.

Each measurement uses real text from one folder: whole books, contextual retrieval tasks, and passages.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from pplx_bench.measurement import Measurement, add_measurements, check_output, show
from pplx_bench.shapes import SHAPES
from pplx_bench.stream import fidelity, many, quality, report, size
from pplx_bench.stream.setup import SEPARATORS, Setup
from pplx_bench.tables import heading
from pplx_edge.registry import BACKENDS
from pplx_edge.types import DEFAULT_CHUNK_TOKENS
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import positive

MEASUREMENTS = {
    "size": Measurement(
        "measure memory and pace by length, next to late chunking of the whole document in torch",
        size,
        report.size_tables,
        report.draw_size,
        size.passed,
    ),
    "fidelity": Measurement(
        "compare vectors of windows with those of the full context",
        fidelity,
        report.fidelity_table,
        report.draw_fidelity,
    ),
    "quality": Measurement(
        "measure nDCG@10 of streamed chunks, next to chunks with and without context",
        quality,
        report.quality_tables,
        report.draw_quality,
    ),
    "many": Measurement(
        "measure the speed of encode_streams on many small documents, next to encode", many, report.many_table
    ),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add a subcommand for each measurement."""
    json_help = "Append results, and do not measure those that are already there."
    for _, sub in add_measurements(parser, MEASUREMENTS, json_help):
        sub.add_argument(
            "data", type=Path, metavar="FOLDER", help="Contains longdocs.jsonl.gz and tasks in BEIR layout."
        )
        _add_model(sub.add_argument_group("model"))


def run(args: Namespace) -> int:
    """Measure and print. Returns 0, or 1 if a stream failed, or was long enough to judge and not flat."""
    check_output(args)
    measurement, setup = MEASUREMENTS[args.measurement], Setup(args)
    print(heading(setup.header), flush=True)
    return show(measurement, measurement.module.measure(setup), args, "stream")


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
