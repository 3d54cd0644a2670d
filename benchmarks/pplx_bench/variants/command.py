"""`pplx-edge bench variants`: every format and peer that this machine can run, in one report with recommendations."""

import argparse
import json
import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from pplx_bench import machine
from pplx_bench.naming import label_of
from pplx_bench.options import comma_list, list_of, one_of
from pplx_bench.results import FAILED, Result, Results
from pplx_bench.retrieval.beir import read_task, task_folders
from pplx_bench.shapes import add_shape_options, checkpoint_of, shape_name
from pplx_bench.speed.workload import parse_row
from pplx_bench.variants.collect import Settings, collect
from pplx_bench.variants.report import Report, html, markdown
from pplx_bench.variants.summary import changes, recommend, rows_of
from pplx_bench.variants.variant import PEER_NAMES, find_variants
from pplx_bench.workdir import default_work, say
from pplx_convert.parity import PROBE_TEXTS
from pplx_edge.errors import InputError
from pplx_edge.registry import all_formats
from pplx_edge.spec import ModelSpec
from pplx_edge.weights import hub
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.host import n_cores
from pplx_kit.options import MODEL_HELP, add_hub_options, offline, positive

JSON, PAGE, CARD = "variants.jsonl", "variants.html", "variants.md"
_TEXTS_PER_TASK = 200
_ROWS = "1x16,8x128,8x512"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", default=BUILT_IN, help=f"Checkpoint to measure: {MODEL_HELP}.")
    add_shape_options(parser, None)
    add("--data", type=Path, nargs="+", default=[], metavar="FOLDER", help="Tasks in BEIR layout, or folders of them.")
    add("--tasks", type=comma_list, metavar="TASK,TASK", help="Only measure these tasks.")
    add(
        "--out",
        type=Path,
        default=Path("variants"),
        metavar="DIR",
        help="Write results and models here (default: %(default)s).",
    )
    add(
        "--formats", type=one_of(all_formats()), default=[], metavar="F,F", help="Formats (default: all that run here)."
    )
    add(
        "--peers",
        type=list_of(_peer),
        default=[],
        metavar="P,P",
        help=f"Peers, NAME or NAME=PYTHON with the interpreter of another environment: {', '.join(PEER_NAMES)}.",
    )
    add(
        "--rows",
        type=list_of(_row),
        default=_ROWS.split(","),
        metavar="R,R",
        help=f"Batches to time (default: {_ROWS}).",
    )
    add(
        "--dims",
        type=list_of(positive),
        default=[256],
        metavar="N,N",
        help="Also score these dimensions (default: 256).",
    )
    add("--max-tokens", type=positive, default=512, metavar="N", help="Truncate texts to N tokens (default: 512).")
    add("--max-gb", type=float, metavar="GB", help="Leave out variants that need more memory than this.")
    add("--minutes", type=float, metavar="N", help="Stop after this time. A further run continues.")
    add("--budget", type=float, default=10.0, metavar="S", help="Seconds for timing one batch (default: %(default)s).")
    add("--threads", type=positive, default=n_cores(), metavar="N", help="CPU threads of each variant (default: all).")
    add("--compare", type=Path, metavar="OLD.jsonl", help="Show what changed since these results.")
    parser.set_defaults(work=default_work())
    add_hub_options(parser)


def run(args: Namespace) -> int:
    """Measure, write the report, and print its Markdown. Returns 0, or 1 if a variant that should run failed."""
    old = _lines(args.compare) if args.compare else []
    name = f"{shape_name(args.shape, args.layers)} shape, random" if args.shape else label_of(args.model)
    checkpoint = (
        checkpoint_of(args) if args.shape else hub.locate(args.model, revision=args.revision, offline=offline(args))
    )
    spec = ModelSpec.from_directory(checkpoint)
    folders = task_folders(args.data, args.tasks) if args.data else []
    tasks = [read_task(folder) for folder in folders]
    variants, left_out = find_variants(args.formats, dict(args.peers), spec, args.max_gb)
    args.out.mkdir(parents=True, exist_ok=True)
    header = machine.run()
    results = Results("variants", header, args.out / JSON)
    settings = Settings(
        checkpoint=checkpoint,
        model=name,
        directory=args.out,
        threads=args.threads,
        rows=args.rows,
        budget=args.budget,
        texts=[*PROBE_TEXTS, *(passage.text for task in tasks for passage in task.corpus[:_TEXTS_PER_TASK])],
        tasks=folders,
        task_digests=[task.digest for task in tasks],
        dims=args.dims,
        max_tokens=args.max_tokens,
    )
    ends = time.monotonic() + 60 * args.minutes if args.minutes else None
    found = collect(variants, settings, results, lambda: ends is not None and time.monotonic() > ends)
    report = make_report(name, found, left_out, [task.name for task in tasks], header, old)
    (args.out / PAGE).write_text(html(report), encoding="utf-8")
    (args.out / CARD).write_text(markdown(report), encoding="utf-8")
    print(markdown(report))
    say(f"report: {args.out / PAGE}")
    return 1 if any(FAILED in result and "--minutes" not in result[FAILED] for result in found) else 0


def make_report(
    model: str,
    results: list[Result],
    left_out: dict[str, str],
    tasks: list[str],
    header: dict[str, object],
    old: list[Result],
) -> Report:
    """Return the report of results, which need not be new."""
    rows = rows_of(results)
    return Report(
        model=model,
        header=header,
        rows=rows,
        recommendations=recommend(rows),
        left_out=left_out,
        tasks=tasks,
        no_energy=next((result["no_energy"] for result in results if result.get("no_energy")), ""),
        changes=changes(rows_of(old), rows) if old else (),
    )


def _lines(path: Path) -> list[Result]:
    """Return the results in a file. Raises InputError if it has others."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not all(line["benchmark"] == "variants" for line in lines):
            raise ValueError("other results than those of bench variants")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the results of bench variants ({error})") from error
    return lines


def _peer(text: str) -> tuple[str, str]:
    name, _, python = text.partition("=")
    if name not in PEER_NAMES:
        raise argparse.ArgumentTypeError(f"{name!r}: choose among {', '.join(PEER_NAMES)}")
    return name, python or sys.executable


def _row(text: str) -> str:
    return parse_row(text).name
