"""`pplx-edge bench search`: the index of pplx-search at scale on synthetic vectors, and the whole program on files."""

import shutil
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplx_bench import machine
from pplx_bench.options import add_output, add_subcommands, check_output
from pplx_bench.search import folder, relevance, report, retrieval, scale
from pplx_bench.tables import heading
from pplx_bench.timing import CpuWatch
from pplx_bench.workdir import append_lines
from pplx_kit.host import versions

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measurement:
    """A subcommand: its summary, options, results, table and picture."""

    summary: str
    add_options: Callable[[Any], None]
    measure: Callable[[Namespace, Path], Iterator[Figures]]
    table: Callable[[Sequence[Figures]], str]
    draw: Callable[[Sequence[Figures], Path], None] | None = None


MEASUREMENTS = {
    "scale": Measurement(
        "measure time, recall and size of the index on synthetic vectors, next to other stores",
        scale.add_options,
        scale.measure,
        report.scale_table,
        report.draw_scale,
    ),
    "folder": Measurement(
        "measure use of the model, memory, rescans, cold starts and size on real files",
        folder.add_options,
        folder.measure,
        report.folder_table,
    ),
    "retrieval": Measurement(
        "measure nDCG@10 of the whole program on tasks written as Markdown, HTML, PDF and DOCX files",
        retrieval.add_options,
        retrieval.measure,
        report.retrieval_table,
    ),
    "relevance": Measurement(
        'measure the error rate of "nothing relevant" on held-out tasks, and fit its calibration',
        relevance.add_options,
        relevance.measure,
        report.relevance_table,
    ),
}


def add_arguments(parser: ArgumentParser) -> None:
    """Add a subcommand for each measurement."""
    for name, sub in add_subcommands(parser, {name: each.summary for name, each in MEASUREMENTS.items()}).items():
        if name != "scale":
            sub.add_argument("data", type=Path, metavar="FOLDER", help="Contains tasks in BEIR layout.")
        MEASUREMENTS[name].add_options(sub.add_argument_group(name))
        add_output(sub, "Append results.")
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
        for figures in measurement.measure(args, work):
            results.append({"benchmark": "search", "part": args.measurement, **figures, **header})
            if args.json is not None:
                append_lines(args.json, results[-1:])
    finally:
        shutil.rmtree(work)
    print(f"\n{measurement.table(results)}")
    if args.plot is not None and measurement.draw is not None:
        measurement.draw(results, args.plot / f"search-{args.measurement}.svg")
    if (others := watch.others()) is not None:
        print(f"\nother processes kept {others:.1f} cores busy meanwhile", flush=True)
    return 0
