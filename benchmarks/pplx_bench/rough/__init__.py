"""`pplx-edge bench rough`: make a model as rough as real checkpoints, and convert it as it is and equalized."""

import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path

from pplx_bench import machine, report
from pplx_bench.retrieval.beir import read_task
from pplx_bench.rough.measure import SETS, Row, measure, part_of_task
from pplx_bench.workdir import append_lines, say
from pplx_edge.errors import InputError
from pplx_edge.registry import all_formats
from pplx_edge.weights import hub

DEFAULT_FORMATS = "onnx-int8,mlx-q8,coreml-fp16,coreml-int8"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("task", type=Path, metavar="TASK", help="Folder of a retrieval task in BEIR layout.")
    parser.add_argument("--model", default="nano", help="Checkpoint to make rough (default: %(default)s).")
    parser.add_argument("--plants", default=",".join(SETS), metavar="P,P", help="Default: all, each and together.")
    parser.add_argument("--formats", default=DEFAULT_FORMATS, metavar="F,F", help="Default: %(default)s.")
    parser.add_argument("--queries", type=int, default=100, metavar="N", help="Use the first N queries.")
    parser.add_argument("--passages", type=int, default=300, metavar="N", help="Use N passages.")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="Cut inputs to N tokens.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Append the results to a JSON Lines file.")


def run(args: Namespace) -> int:
    """Convert, print the table, and return 0 if the limits of no format refuse an equalized conversion."""
    sets, formats = args.plants.split(","), args.formats.split(",")
    for option, given, known in (("--plants", sets, SETS), ("--formats", formats, all_formats())):
        if unknown := [name for name in given if name not in known]:
            raise InputError(f"{option}: unknown name {unknown[0]!r}; choose from {', '.join(known)}")
    task = part_of_task(read_task(args.task), args.queries, args.passages)
    header = {"benchmark": "rough", "model": args.model, "layers": None, "task": task.name} | machine.run()
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for row in measure(hub.locate(args.model), sets, formats, task, Path(work), args.max_tokens, say):
            rows.append(row)
            if args.json is not None:
                append_lines(args.json, [header | asdict(row)])
    print(report.heading(header))
    print(f"{args.model} on {len(task.queries)} queries and {len(task.corpus)} passages of {task.name}\n")
    print(table(rows))
    return 0 if not any(row.refused for row in rows if row.equalized) else 1


def table(rows: list[Row]) -> str:
    """Return a table with a line for each set of plants and format: before and after equalization."""
    found = {(row.plants, row.format, row.equalized): row for row in rows}
    lines = []
    for plants, format, equalized in found:
        if equalized:
            before, after = found[plants, format, False], found[plants, format, True]
            own = found[plants, "float32", False]
            lines.append([f"{plants} {format}", _error(before), _error(after), *map(_ndcg, (own, before, after))])
    head = ["1 - mean cosine; nDCG@10", "as it is", "equalized", "float32", "as it is", "equalized"]
    return report.table(head, lines, 26)


def _error(row: Row) -> str:
    return "NaN" if row.error is None else f"{row.error:.6f}" + (" !" if row.refused else "")


def _ndcg(row: Row) -> str:
    return "–" if row.ndcg is None else f"{100 * row.ndcg:.2f}"
