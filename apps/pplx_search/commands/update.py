"""`pplx-search update`: bring the index up to date with the files."""

import argparse
import time
from typing import Any

from pplx_edge.errors import InputError
from pplx_kit.options import add_command
from pplx_search.access import model_of, open_index
from pplx_search.indexer import Indexer
from pplx_search.options import add_model_options, add_quiet_option
from pplx_search.program import COMMANDS
from pplx_search.progress import Bar, say_summary
from pplx_search.settings import options_from


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "update",
        COMMANDS["update"],
        "pplx-search update",
        description="Scans the added folders. A file whose size and modification time are the same is not read again, "
        "and one with the same content is not embedded again. Deleted files leave the index; if a whole folder is "
        "missing or empty, for example because a drive is not mounted, its files stay. You can interrupt it at any "
        "time; the next run continues where it stopped. Exit status: 0 done, even if some files could not be read, 2 "
        "error.",
    )
    parser.add_argument(
        "-c",
        "--collection",
        action="append",
        metavar="NAME",
        help="Only update this collection (default: all). May be repeated.",
    )
    parser.add_argument(
        "--retry",
        action="store_true",
        help="Also read files again that could not be read before. Without this, they are read again when they change.",
    )
    add_quiet_option(parser)
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
    say_summary(report, time.monotonic() - started, args.quiet)
    return 0
