"""`pplx-edge bench search`: the search app's index at scale on made-up vectors, and the whole app on real files."""

import shutil
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplx_bench import machine, tables
from pplx_bench.options import one_of, require_writable
from pplx_bench.searching import folder, relevance, retrieval, scale
from pplx_bench.timing import CpuWatch
from pplx_bench.workdir import append_lines
from pplx_edge.errors import InputError
from pplx_kit.host import versions

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """Something to measure: results one by one, each with what it was made of, and their table."""

    add_options: Callable[[Any], None]
    measure: Callable[[Namespace, Path], Iterator[Figures]]
    table: Callable[[Sequence[Figures]], str]
    needs_data: bool = True
    draw: Callable[[Sequence[Figures], Path], None] | None = None


PARTS = {
    "scale": Part(scale.add_options, scale.measure, scale.table, needs_data=False, draw=scale.draw),
    "folder": Part(folder.add_options, folder.measure, folder.table),
    "retrieval": Part(retrieval.add_options, retrieval.measure, retrieval.table),
    "relevance": Part(relevance.add_options, relevance.measure, relevance.table),
}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("data", type=Path, nargs="?", metavar="FOLDER", help="holds tasks in BEIR layout")
    parser.add_argument(
        "--what", type=one_of(PARTS), default=["scale"], metavar="W,W", help=f"{', '.join(PARTS)}; default scale"
    )
    for name, part in PARTS.items():
        part.add_options(parser.add_argument_group(name))
    group = parser.add_argument_group("output")
    group.add_argument("--json", type=Path, metavar="FILE", help="append results")
    group.add_argument("--plot", type=Path, metavar="DIR", help="write a picture here: search-scale.svg")
    group.add_argument("--work", type=Path, metavar="DIR", help="of files that are deleted again; default temporary")


def run(args: Namespace) -> int:
    """Measures and prints; 0."""
    if args.json is not None:
        require_writable(args.json, ".jsonl")
    if args.plot is not None and not args.plot.is_dir():
        raise InputError(f"{args.plot}: no such directory; create it first")
    for what in args.what:
        if PARTS[what].needs_data and args.data is None:
            raise InputError(f"--what {what} needs a folder with tasks in BEIR layout: pplx-edge bench search FOLDER …")
    header: Figures = {**machine.run(), "layers": None}
    header["versions"] |= versions("apsw", "numkong", "sqlite-vec", "usearch", "lancedb")
    print(tables.heading(header), flush=True)
    if args.work is not None:
        args.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="bench-search-", dir=args.work))
    try:
        for what in args.what:
            _run_part(what, args, work, header)
    finally:
        shutil.rmtree(work)
    return 0


def _run_part(what: str, args: Namespace, work: Path, header: Figures) -> None:
    watch = CpuWatch()
    results = []
    for figures in PARTS[what].measure(args, work):
        results.append({"benchmark": "search", "part": what, **figures, **header})
        if args.json is not None:
            append_lines(args.json, results[-1:])
    part = PARTS[what]
    print(f"\n{part.table(results)}")
    if args.plot is not None and part.draw is not None:
        part.draw(results, args.plot / f"search-{what}.svg")
    if (others := watch.others()) is not None:
        print(f"\nother processes kept {others:.1f} cores busy meanwhile", flush=True)
