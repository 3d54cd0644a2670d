"""`pplx-search status`: what is indexed, what is not, and why."""

import argparse
import json
import os
from dataclasses import asdict
from typing import Any

from pplx_edge.cli.options import add_command
from pplx_edge.cli.terminal import human_bytes, printable
from pplx_search.cli.opening import open_index, shown_path
from pplx_search.store import FileState, Status, Store

_SCHEMA = 1
_NOT_INDEXED = (FileState.PENDING, FileState.FAILED, FileState.SKIPPED)


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "status",
        "say what is indexed, what is not, and why",
        "pplx-search status --files",
    )
    parser.add_argument("--files", action="store_true", help="each file that is not indexed, with its reason")
    parser.add_argument("--json", action="store_true", help="one JSON object, with --files one more a file")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with open_index(args) as store:
        status = store.status()
        print(
            _json(store, status)
            if args.json
            else "\n".join(f"{name:11} {value}" for name, value in _lines(store, status))
        )
        if args.files:
            for report in store.files.reports(_NOT_INDEXED):
                fields = {"path": os.fsdecode(report.path), "state": str(report.state), "code": report.code}
                if args.json:
                    print(json.dumps(fields | {"message": report.message, "attempts": report.attempts}))
                else:
                    print(f"{report.state:8}  {shown_path(report.path)}  {printable(report.message or report.code)}")
    return 0


def _lines(store: Store, status: Status) -> list[tuple[str, str]]:
    serving = status.serving
    total = status.indexed + status.pending + status.failed
    lines = [
        ("files", f"{status.indexed:,} of {total:,} indexed, {status.pending:,} pending, {status.failed:,} failed"),
        ("passed over", f"{status.skipped:,}"),
    ]
    lines += [("", f"{count:,} {printable(reason)}") for reason, count in sorted(status.reasons.items())]
    lines += [
        ("documents", f"{status.n_documents:,} with {status.n_chars:,} characters in {status.n_chunks:,} chunks"),
        ("index", f"{human_bytes(status.database_bytes)}, bits {human_bytes(status.bits_bytes)}, in {store.directory}"),
    ]
    if serving is not None:
        settings = serving.settings
        lines.append(
            ("model", f"{settings['model']}, {serving.dim} dimensions, {settings['chunk_tokens']} tokens a chunk")
        )
    if status.building is not None:
        done = f"{status.n_rebuilt:,} of {status.n_contents:,} texts"
        lines.append(("new model", f"{status.building.settings['model']}: {done}; go on: pplx-search reembed"))
    for collection in store.collections.all():
        roots = ", ".join(shown_path(root.path) for root in collection.roots) or "no folders"
        lines.append(("collection", f"{collection.name}: {roots}"))
    return lines + [("note", remark) for remark in status.remarks]


def _json(store: Store, status: Status) -> str:
    collections = [
        {"name": each.name, "roots": [os.fsdecode(root.path) for root in each.roots], "rules": dict(each.rules)}
        for each in store.collections.all()
    ]
    return json.dumps({"schema": _SCHEMA} | asdict(status) | {"collections": collections}, default=str)
