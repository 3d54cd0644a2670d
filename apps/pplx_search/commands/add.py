"""`pplx-search add`: index folders and files."""

import argparse
import time
from pathlib import Path
from typing import Any

from pplx_edge.errors import InputError
from pplx_kit.options import add_command
from pplx_search.access import model_of, open_index, open_model
from pplx_search.indexer import Indexer, Report
from pplx_search.ingest.walk import WalkRules
from pplx_search.options import (
    DEFAULT_COLLECTION,
    DEFAULT_MODEL,
    absolute,
    add_model_options,
    add_quiet_option,
    add_rule_options,
)
from pplx_search.program import COMMANDS
from pplx_search.progress import Bar, say_summary
from pplx_search.settings import options_for, options_from, settings_of


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "add",
        COMMANDS["add"],
        "pplx-search add ~/Documents ~/Notes\npplx-search add ~/mail --collection mail --include '*.mbox'",
        description="Skips hidden files, files that a .gitignore excludes, symbolic links, files that are stored only "
        "in the cloud, and files without text that it can read. To index an ignored file or folder, add its path "
        "itself. Files become searchable while indexing is still running. You can interrupt it at any time: `add` or "
        "`update` continues where it stopped. Exit status: 0 done, even if some files could not be read (see: "
        "pplx-search status --files), 2 error.\n\n"
        "A collection is a named set of folders and files with rules about what to index; `search --collection NAME` "
        "searches it alone. --include, --exclude and --hidden are the rules of the whole collection: later updates "
        "follow them, and giving any of them again replaces all of them.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="Folders and files to index.")
    parser.add_argument(
        "-c",
        "--collection",
        default=DEFAULT_COLLECTION,
        metavar="NAME",
        help="Collection to add them to. A new name makes a new collection.",
    )
    add_rule_options(parser, "Model of a new index; `pplx-search reembed` changes that of an existing one")
    add_quiet_option(parser)
    add_model_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    report = index_paths(args)
    say_summary(report, time.monotonic() - started, args.quiet)
    return 0


def index_paths(args: argparse.Namespace) -> Report:
    """Index the paths of the command line, and return what was done. Raises InputError for a path that is missing."""
    for path in args.paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
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
                    f"the index was built with {serving.settings['model']}; "
                    f"to switch models, run: pplx-search reembed --model {args.model}"
                )
            model, settings = model_of(store, args)
            options = options_from(settings)
        collection = store.collections.add(args.collection, _rules(args))
        for path in args.paths:
            store.collections.add_root(collection.name, absolute(path))
        with model, Bar(args.quiet) as bar:
            indexer = Indexer(store, model, options, settings, on_progress=bar.show)
            return indexer.update([store.collections.get(collection.name)])


def _rules(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the rules given as options, or None without any. Raises InputError for an invalid pattern."""
    named = {"include": args.include, "exclude": args.exclude, "hidden": args.hidden}
    rules = {name: value for name, value in named.items() if value is not None}
    if not rules:
        return None
    WalkRules(include=tuple(args.include or ()), exclude=tuple(args.exclude or ()))
    return rules
