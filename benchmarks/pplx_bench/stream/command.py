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
from pplx_kit.options import MODEL_HELP, positive

MEASUREMENTS = {
    "size": Measurement(
        "measure memory and tokens per second by length, next to late chunking of the whole document in torch",
        "data/bench --sizes 10k,100k --methods stream --json stream.jsonl",
        size,
        report.size_tables,
        report.draw_size,
        size.passed,
    ),
    "fidelity": Measurement(
        "compare the vectors of windows with those of one pass over the text, by window and margin",
        "data/bench --windows 1024,4096 --json stream.jsonl",
        fidelity,
        report.fidelity_table,
        report.draw_fidelity,
    ),
    "quality": Measurement(
        "measure nDCG@10 of the chunks of windows, of one pass over the document, and of chunks without context",
        "data/bench --tasks squad-context",
        quality,
        report.quality_tables,
        report.draw_quality,
    ),
    "many": Measurement(
        "measure the speed of encode_streams on many small documents, next to encode on the same chunks",
        "data/bench --documents 3000",
        many,
        report.many_table,
    ),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add a subcommand for each measurement."""
    json_help = (
        "Append each result to this .jsonl file, and skip what it already has for the same model, texts and options."
    )
    for _, sub in add_measurements(parser, MEASUREMENTS, json_help):
        sub.add_argument(
            "data",
            type=Path,
            metavar="FOLDER",
            help="Folder with longdocs.jsonl.gz (per line: doc_id, title, text) and tasks in BEIR layout.",
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
    add("--model", default=BUILT_IN, metavar="MODEL", help=f"Model to measure: {MODEL_HELP}.")
    add("--shape", choices=SHAPES, help="Measure random weights in these sizes instead of --model (default: none).")
    add(
        "--layers",
        type=positive,
        metavar="N",
        help="Use only the first N layers of the shape, to try the benchmark out (default: all).",
    )
    add("--backend", default="auto", choices=["auto", *BACKENDS], help="Runtime of the model (default: auto).")
    add("--weights", metavar="TYPE", help="mlx: Type of the weights in memory, as in `embed` (default: as in `embed`).")
    add("--threads", type=positive, metavar="N", help="onnx: Number of CPU threads (default: all cores).")
    add(
        "--chunk-tokens",
        type=positive,
        default=DEFAULT_CHUNK_TOKENS,
        metavar="N",
        help="Maximum length of a chunk in tokens.",
    )
    add(
        "--separator",
        choices=SEPARATORS,
        default="auto",
        help="Join chunks with the separator token of the model; auto does so for contextual models.",
    )
    add("--work", type=Path, metavar="DIR", help="Folder for random weights and logs (default: bench in the cache).")
