"""`pplx-search update`: bring the index up to date with the files."""

import argparse
import os
import time
from typing import Any

from pplx_edge.errors import InputError
from pplx_kit.options import add_command
from pplx_search.cli import COMMANDS
from pplx_search.cli.opening import add_model_options, model_of, open_index, say, shown_path
from pplx_search.cli.progress import Bar, duration
from pplx_search.indexing import Indexer, Report
from pplx_search.settings import options_from

_MOST_MISSING = 5  # unreadable folders listed individually


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "update",
        COMMANDS["update"],
        "pplx-search update",
        description="Unchanged files are not read again. You can interrupt it at any time; the next run continues "
        "where it stopped.",
    )
    parser.add_argument(
        "-c", "--collection", action="append", metavar="NAME", help="Only update this collection. May be repeated."
    )
    parser.add_argument("--retry", action="store_true", help="Also retry files that failed before.")
    parser.add_argument("-q", "--quiet", action="store_true", help="Show no progress bar and no summary.")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    with open_index(args, write=True) as store:
        collections = [store.collections.get(name) for name in args.collection] if args.collection else None
        if not (collections or store.collections.all()):
            raise InputError("nothing has been added yet; start with: pplx-search add FOLDER")
        model, settings = model_of(store, args)
        with model, Bar(args.quiet) as bar:
            indexer = Indexer(store, model, options_from(settings), settings, on_progress=bar.show)
            report = indexer.update(collections, retry=args.retry)
        store.compact()
    tell(report, time.monotonic() - started, args.quiet)
    return 0


def tell(report: Report, seconds: float, quiet: bool) -> None:
    """Print to stderr what a run did and how long it took. Unreadable folders are reported even with `quiet`."""
    for missing in report.missing[:_MOST_MISSING]:
        say(f"{shown_path(os.fsencode(missing.path))}: {missing.reason}; its files stay in the index")
    if len(report.missing) > _MOST_MISSING:
        say(f"and {len(report.missing) - _MOST_MISSING:,} more folders could not be read")
    if quiet:
        return
    counts = {
        "indexed": report.indexed + report.known,
        "unchanged": report.unchanged,
        "moved": report.moved,
        "removed": report.forgotten,
        "skipped": report.skipped,
        "failed": report.failed,
        "still being written": report.changing,
    }
    files = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
    why = "; for details: pplx-search status --files" if report.failed or report.skipped or report.changing else ""
    say(f"{files or 'no files found'}, in {duration(seconds)}{why}")
