"""`pplx-search once`: search files without keeping an index."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from pplx_kit.options import add_command
from pplx_kit.terminal import printable
from pplx_search.access import open_index
from pplx_search.commands import search
from pplx_search.commands.add import index_paths
from pplx_search.console import say, shown_path
from pplx_search.options import DEFAULT_COLLECTION, add_model_options, add_rule_options, query_words
from pplx_search.program import COMMANDS
from pplx_search.store.values import FileState


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "once",
        COMMANDS["once"],
        'pplx-search once "how is the cache cleaned?" src/ README.md\n'
        "pplx-search once \"who pays for shipping?\" contracts/ --include '*.pdf' -k 3 --json",
        description="Makes an index of the files in a temporary directory, searches it as `search` does, and "
        "deletes it. To search the same files again, `add` them instead. Names files that cannot be read. "
        "Exit status: 0 results found, 1 nothing relevant, 2 error.",
    )
    parser.add_argument("query", type=query_words, metavar="QUERY", help="A question or a few words, in quotes.")
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="Files and folders to search.")
    add_rule_options(parser, "Model to embed the files and the query with")
    search.add_search_options(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="Show no progress bar.")
    add_model_options(parser)
    parser.set_defaults(run=run, collection=[])


def run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="pplx-search-once-") as home:
        args.home = Path(home)
        index_paths(argparse.Namespace(**vars(args) | {"collection": DEFAULT_COLLECTION}))
        with open_index(args) as store:
            for report in store.files.reports((FileState.FAILED,)):
                say(f"{shown_path(report.path)}: {printable(report.message or report.code or 'cannot be read')}")
        args.query = [args.query]
        return search.run(args)
