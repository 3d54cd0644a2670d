"""`pplx-search add`: folders and files to the index."""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from pplx_edge.errors import InputError
from pplx_kit.options import add_command
from pplx_search.cli.opening import (
    DEFAULT_COLLECTION,
    DEFAULT_MODEL,
    add_model_options,
    model_of,
    open_index,
    open_model,
)
from pplx_search.cli.progress import Bar
from pplx_search.cli.update import tell
from pplx_search.indexing import Indexer
from pplx_search.ingest.walk import WalkRules
from pplx_search.settings import options_for, options_from, settings_of


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "add",
        "put folders and files into the index, and keep them in mind for updates",
        "pplx-search add ~/Documents ~/Notes\npplx-search add ~/mail --collection mail --include '*.mbox'",
        description="Files that .gitignore names, hidden ones and those in the cloud only are passed over. Everything "
        "is searchable from the first commit on. Interrupt it at any time: the next run goes on there.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="folders and files")
    parser.add_argument("-c", "--collection", default=DEFAULT_COLLECTION, metavar="NAME", help="default: %(default)s")
    parser.add_argument("--include", action="append", metavar="GLOB", help="only such files, as in .gitignore: '*.md'")
    parser.add_argument("--exclude", action="append", metavar="GLOB", help="no such files or folders: 'drafts/'")
    parser.add_argument("--hidden", action="store_true", default=None, help="hidden files too")
    parser.add_argument(
        "--model", metavar="MODEL", help=f"of a new index: what pplx-edge opens; default {DEFAULT_MODEL}"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no bar, no summary")
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    for path in args.paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
    started = time.monotonic()
    with open_index(args, write=True) as store:
        serving = store.vectors.serving
        if serving is None:
            name = args.model or DEFAULT_MODEL
            model = open_model(name, args)
            options = options_for(model)
            settings = settings_of(name, model, options)
        else:
            if args.model not in (None, serving.settings["model"]):
                raise InputError(
                    f"the index has vectors of {serving.settings['model']}; "
                    f"to change them all: pplx-search reembed --model {args.model}"
                )
            model, settings = model_of(store, args)
            options = options_from(settings)
        collection = store.collections.add(args.collection, _rules(args))
        for path in args.paths:
            store.collections.add_root(collection.name, os.fsencode(path.absolute()))
        with model, Bar(args.quiet) as bar:
            indexer = Indexer(store, model, options, settings, on_progress=bar.show)
            report = indexer.update([store.collections.get(collection.name)])
    tell(report, time.monotonic() - started, args.quiet)
    return 0


def _rules(args: argparse.Namespace) -> dict[str, Any] | None:
    """The rules that the options name, None when they name none. Raises InputError for a bad pattern."""
    named = {"include": args.include, "exclude": args.exclude, "hidden": args.hidden}
    rules = {name: value for name, value in named.items() if value is not None}
    if not rules:
        return None
    WalkRules(include=tuple(args.include or ()), exclude=tuple(args.exclude or ()))
    return rules
