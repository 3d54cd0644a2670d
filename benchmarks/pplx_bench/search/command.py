"""`pplx-edge bench search`: the index of pplx-search at scale on synthetic vectors, and the whole program on files."""

import shutil
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from pplx_bench import machine
from pplx_bench.measurement import Measurement, add_measurements, check_output, show
from pplx_bench.search import folder, relevance, report, retrieval, scale
from pplx_bench.tables import heading
from pplx_bench.timing import CpuWatch
from pplx_bench.workdir import append_lines
from pplx_kit.host import versions

Figures = dict[str, Any]
MEASUREMENTS = {
    "scale": Measurement(
        "measure time, recall and size of the index on synthetic vectors, next to other stores",
        scale,
        report.scale_table,
        report.draw_scale,
    ),
    "folder": Measurement(
        "measure use of the model, memory, rescans, cold starts and size on real files", folder, report.folder_table
    ),
    "retrieval": Measurement(
        "measure nDCG@10 of the whole program on tasks written as Markdown, HTML, PDF and DOCX files",
        retrieval,
        report.retrieval_table,
    ),
    "relevance": Measurement(
        'measure the error rate of "nothing relevant" on held-out tasks, and fit its calibration',
        relevance,
        report.relevance_table,
    ),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add a subcommand for each measurement."""
    for name, sub in add_measurements(parser, MEASUREMENTS, "Append results."):
        if name != "scale":
            sub.add_argument("data", type=Path, metavar="FOLDER", help="Contains tasks in BEIR layout.")
        sub.add_argument(
            "--work", type=Path, metavar="DIR", help="Directory of temporary files (default: the system's)."
        )


def run(args: Namespace) -> int:
    """Measure and print. Returns 0."""
    check_output(args)
    measurement = MEASUREMENTS[args.measurement]
    header: Figures = {**machine.run(), "layers": None}
    header["versions"] |= versions("apsw", "numkong", "sqlite-vec", "usearch", "lancedb")
    print(heading(header), flush=True)
    if args.work is not None:
        args.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="bench-search-", dir=args.work))
    watch = CpuWatch()
    results = []
    try:
        for figures in measurement.module.measure(args, work):
            results.append({"benchmark": "search", "part": args.measurement, **figures, **header})
            if args.json is not None:
                append_lines(args.json, results[-1:])
    finally:
        shutil.rmtree(work)
    status = show(measurement, results, args, "search")
    if (others := watch.others()) is not None:
        print(f"\nother processes kept {others:.1f} cores busy meanwhile", flush=True)
    return status
