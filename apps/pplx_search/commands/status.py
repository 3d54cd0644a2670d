"""`pplx-search status`: show what is indexed, what is not, and why."""

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pplx_kit.options import add_command
from pplx_kit.terminal import human_bytes, printable
from pplx_search.access import open_index
from pplx_search.console import shown_path
from pplx_search.ingest.failures import CODES
from pplx_search.program import COMMANDS
from pplx_search.store import FileReport, FileState, Status, Store

_SCHEMA = 1
_NAME_CHARS = 12
_FAILURES = CODES | {"model": "the model returned no finite vector for part of its text"}
_NOT_INDEXED = (FileState.PENDING, FileState.FAILED, FileState.SKIPPED)


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "status",
        COMMANDS["status"],
        "pplx-search status\npplx-search status --files",
        description="Shows how many files are indexed, why others are not, where the index is and how large, its "
        "model, and the folders of each collection.",
    )
    parser.add_argument(
        "--files", action="store_true", help="Also list each file that is not indexed, with the reason."
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="Print one JSON object; with --files, one more for each file that is not indexed.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with open_index(args) as store:
        status = store.status()
        if args.json:
            print(_json(store, status))
        else:
            print("\n".join(f"{name:{_NAME_CHARS}} {value}".rstrip() for name, value in _lines(store, status)))
        if args.files:
            for report in store.files.reports(_NOT_INDEXED):
                print(_file_json(report) if args.json else _file_line(report))
    return 0


def _file_json(report: FileReport) -> str:
    fields = {"path": os.fsdecode(report.path), "state": str(report.state), "code": report.code}
    return json.dumps(fields | {"message": report.message, "attempts": report.attempts})


def _file_line(report: FileReport) -> str:
    pending = "new or changed; the next update will read it" if report.state == FileState.PENDING else ""
    state = "skipped" if report.state == FileState.SKIPPED else report.state
    return f"{state:12} {shown_path(report.path)}  {printable(report.message or report.code or pending)}"


def _lines(store: Store, status: Status) -> list[tuple[str, str]]:
    total = status.indexed + status.pending + status.failed
    to_come = f", {status.pending:,} pending" if status.pending else ""
    so_far = " so far" if status.n_embedded < status.n_texts else ""
    texts = f"{status.n_chars:,} characters of {status.n_documents:,} documents in {status.n_chunks:,} passages{so_far}"
    size = human_bytes(status.database_bytes + status.bits_bytes)
    lines = [
        ("files", f"{status.indexed:,} of {total:,} indexed{to_come}"),
        *_reasons("failed", {code: n for code, n in status.reasons.items() if code in _FAILURES}),
        *_reasons("skipped", {code: n for code, n in status.reasons.items() if code not in _FAILURES}),
        ("texts", texts),
        ("index", f"{size} in {shown_path(os.fsencode(store.directory), from_here=False)}"),
    ]
    if (serving := status.serving) is not None:
        about = f"{serving.dim} dimensions, {serving.settings['chunk_tokens']} tokens per passage"
        lines.append(("model", f"{serving.settings['model']}, {about}"))
    if status.building is not None:
        done = f"{status.n_rebuilt:,} of {status.n_texts:,} distinct documents"
        told = f"{status.building.settings['model']}: {done}; to continue, run: pplx-search reembed"
        lines.append(("new model", told))
    for collection in store.collections.all():
        roots = [shown_path(root.path, from_here=False) for root in collection.roots] or ["no folders"]
        lines += [("collection", f"{printable(collection.name)}: {roots[0]}"), *(("", root) for root in roots[1:])]
    return lines + [("note", remark) for remark in status.remarks]


def _reasons(name: str, counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return lines with the number of files per reason, most frequent first."""
    if not counts:
        return []
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    width = max(len(f"{n:,}") for n in counts.values())
    told = [
        f"{n:{width},} {printable(code)}{': ' + _FAILURES[code] if code in _FAILURES else ''}" for code, n in ordered
    ]
    return [(name, told[0]), *(("", line) for line in told[1:])]


def _json(store: Store, status: Status) -> str:
    collections = [
        {"name": each.name, "roots": [os.fsdecode(root.path) for root in each.roots], "rules": dict(each.rules)}
        for each in store.collections.all()
    ]
    return json.dumps({"schema": _SCHEMA} | asdict(status) | {"collections": collections}, default=str)
