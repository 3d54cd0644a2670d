"""`pplx-search watch`: keep the index up to date while it runs."""

import argparse
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from watchfiles import watch as watch_files

from pplx_edge.errors import InputError
from pplx_kit.options import add_command
from pplx_search.access import model_of, open_index
from pplx_search.console import say
from pplx_search.indexer import Indexer
from pplx_search.options import add_model_options
from pplx_search.program import COMMANDS
from pplx_search.progress import say_summary
from pplx_search.settings import options_from

_TICK_SECONDS = 5.0
_RESCAN_SECONDS = 3600.0  # some file systems send no events, and events can get lost
_SLEPT_SECONDS = 60.0  # a tick this much too long means that the machine slept


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "watch",
        COMMANDS["watch"],
        "pplx-search watch",
        description="Runs in the foreground. Does what `update` does at the start, after the machine wakes from sleep, "
        "once an hour, and whenever the system reports a changed file; the model stays in memory in between. You can "
        "search meanwhile, but `add`, `update`, `rm` and `reembed` fail until it ends.",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="Report nothing after each update.")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with open_index(args, write=True) as store:
        model, settings = model_of(store, args)
        with model:
            roots = [os.fsdecode(root.path) for each in store.collections.all() for root in each.roots]
            if not roots:
                raise InputError("nothing has been added yet; start with: pplx-search add FOLDER")
            for _ in reasons_to_look(roots):
                started = time.monotonic()
                indexer = Indexer(store, model, options_from(settings), settings)
                report = indexer.update()
                store.compact()
                if report.indexed or report.known or report.forgotten or report.moved or report.failed:
                    say_summary(report, time.monotonic() - started, args.quiet)
                elif not args.quiet:
                    say("up to date")
    return 0


def reasons_to_look(roots: list[str], stop: threading.Event | None = None) -> Iterator[str]:
    """Yield a reason each time all roots should be scanned again: start, files, wake or hour."""
    yield "start"
    looked = tick = time.time()
    there = [root for root in roots if os.path.exists(root)]
    milliseconds = int(1000 * _TICK_SECONDS)
    for changes in watch_files(*there, yield_on_timeout=True, rust_timeout=milliseconds, stop_event=stop):
        now = time.time()
        slept, tick = now - tick > _TICK_SECONDS + _SLEPT_SECONDS, now
        if changes or slept or now - looked > _RESCAN_SECONDS:
            yield "files" if changes else "wake" if slept else "hour"
            looked = tick = time.time()
