"""`pplx-search update`: brings the index up to date with the files."""

import argparse
import os
import time
from typing import Any

from pplx_edge.errors import InputError
from pplx_kit.options import add_command
from pplx_search.cli.opening import add_model_options, model_of, open_index, say, shown_path
from pplx_search.cli.progress import Bar, duration
from pplx_search.indexing import Indexer, Report
from pplx_search.settings import options_from

_MOST_MISSING = 5  # folders that could not be looked into, each said on a line of its own


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "update",
        "look for new, changed and deleted files, and index what needs it",
        "pplx-search update",
        description="Files that are as they were cost nothing. Interrupt it at any time: the next run goes on there.",
    )
    parser.add_argument("-c", "--collection", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--retry", action="store_true", help="read those again that failed before")
    parser.add_argument("-q", "--quiet", action="store_true", help="no bar, no summary")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    with open_index(args, write=True) as store:
        collections = [store.collections.get(name) for name in args.collection] if args.collection else None
        if not (collections or store.collections.all()):
            raise InputError("there is nothing to look at yet; begin with: pplx-search add FOLDER")
        model, settings = model_of(store, args)
        with model, Bar(args.quiet) as bar:
            indexer = Indexer(store, model, options_from(settings), settings, on_progress=bar.show)
            report = indexer.update(collections, retry=args.retry)
        store.compact()
    tell(report, time.monotonic() - started, args.quiet)
    return 0


def tell(report: Report, seconds: float, quiet: bool) -> None:
    """Says on stderr what a run did, and how long it took. What could not be looked into is always said."""
    for missing in report.missing[:_MOST_MISSING]:
        say(f"{shown_path(os.fsencode(missing.path))}: {missing.reason}; what was indexed from there is kept")
    if len(report.missing) > _MOST_MISSING:
        say(f"and {len(report.missing) - _MOST_MISSING:,} more folders that could not be looked into")
    if quiet:
        return
    counts = {
        "indexed": report.indexed + report.known,
        "unchanged": report.unchanged,
        "moved": report.moved,
        "forgotten": report.forgotten,
        "passed over": report.skipped,
        "failed": report.failed,
        "still being written": report.changing,
    }
    files = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
    why = "; why: pplx-search status --files" if report.failed or report.skipped or report.changing else ""
    say(f"{files or 'no files there'}, in {duration(seconds)}{why}")
