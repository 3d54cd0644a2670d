"""`pplx-edge bench search`: the index of pplx-search at scale on synthetic vectors, and the whole program on files."""

import shutil
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from pplx_bench import machine
from pplx_bench.measurement import Measurement, add_measurements, check_output, show
from pplx_bench.search import folder, fusion, manuals, relevance, report, retrieval, scale
from pplx_bench.tables import heading
from pplx_bench.timing import CpuWatch
from pplx_bench.workdir import append_lines
from pplx_kit.host import versions

Figures = dict[str, Any]
MEASUREMENTS = {
    "scale": Measurement(
        "measure time, recall (against exact search) and size of the index on synthetic vectors, next to other stores",
        "--chunks 1000000 --queries 100 --json search.jsonl",
        scale,
        report.scale_table,
        report.draw_scale,
    ),
    "folder": Measurement(
        "index files made of retrieval tasks; measure the share of time that the model computes, memory, an update "
        "without changes, searches from a new process, size, and how often the right file is found",
        "data/bench --steps start,rescan --json folder.jsonl",
        folder,
        report.folder_table,
    ),
    "retrieval": Measurement(
        "write retrieval tasks as Markdown, HTML, PDF and DOCX files, index them, and measure nDCG@10",
        "data/bench --tasks squad-dev",
        retrieval,
        report.retrieval_table,
    ),
    "manuals": Measurement(
        "ask 60 questions of three real manuals, and count how often the right section is among the first hits",
        "unpacked/ --json manuals.jsonl",
        manuals,
        report.manuals_table,
    ),
    "fusion": Measurement(
        "fit the weights of vectors, words, phrases and names in the ranking, and compare them with those in use",
        "held-out --questions 200",
        fusion,
        report.fusion_table,
    ),
    "relevance": Measurement(
        'measure how often "nothing relevant" is wrong on tasks that it was not fitted to, and fit its calibration',
        "data/bench --questions 250 --calibration calibration.json",
        relevance,
        report.relevance_table,
    ),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add a subcommand for each measurement."""
    for name, sub in add_measurements(parser, MEASUREMENTS, "Append the results to this .jsonl file."):
        if name not in ("scale", "manuals"):
            sub.add_argument("data", type=Path, metavar="FOLDER", help="Folder of retrieval tasks in BEIR layout.")
        sub.add_argument(
            "--work", type=Path, metavar="DIR", help="Folder for temporary files (default: that of the system)."
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
