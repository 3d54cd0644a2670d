"""`pplx-search export`: write passages and vectors to a file for other programs."""

import argparse
from pathlib import Path
from typing import Any

from pplx_edge.errors import InputError
from pplx_edge.files import replacing_file
from pplx_kit.options import add_command
from pplx_search.access import EMPTY, open_index
from pplx_search.console import say
from pplx_search.options import add_collection_filter, add_folder_filter
from pplx_search.passage_table import COLUMNS, passages, writer_for
from pplx_search.program import COMMANDS
from pplx_search.store import Filter


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "export",
        COMMANDS["export"],
        "pplx-search export passages.parquet\npplx-search export vectors.npz --no-text --in ~/Documents",
        description="A passage has a row for each document that contains it. The columns are "
        f"{', '.join(COLUMNS)}, and vector (Parquet) or vectors (.npz, int8 [N, D]). `start` and `stop` are offsets in "
        "the text of the document, in characters, and `part` is the place in a file of several documents, such as a "
        "mailbox. Compare vectors by cosine. For Parquet, install pplx-edge[export].",
    )
    parser.add_argument("out", type=Path, metavar="FILE", help="Output file, .parquet or .npz.")
    add_collection_filter(parser, "export")
    add_folder_filter(parser, "export")
    parser.add_argument("--no-text", action="store_true", help="Leave out the column text.")
    parser.add_argument("--force", action="store_true", help="Overwrite an existing file.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    write = writer_for(args.out)
    if args.out.exists() and not args.force:
        raise InputError(f"{args.out}: already exists; choose another name or use --force")
    with open_index(args) as store:
        serving = store.vectors.serving
        if serving is None:
            raise InputError(EMPTY)
        wanted = Filter(
            collections=tuple(store.collections.get(name).name for name in args.collection), folders=tuple(args.folders)
        )
        with replacing_file(args.out) as partial:
            n_rows = write(partial, passages(store, wanted, with_text=not args.no_text), serving.dim)
    say(f"exported {n_rows:,} passages with {serving.dim}-dimensional vectors")
    print(args.out)
    return 0
