"""`pplx-search export`: passages and vectors for other programs."""

import argparse
import os
from pathlib import Path
from typing import Any

from pplx_edge.errors import InputError
from pplx_kit.options import add_command
from pplx_search.cli.opening import open_index, say
from pplx_search.exporting import passages, writer_for
from pplx_search.store import Filter


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "export",
        "write all passages with their vectors to a file",
        "pplx-search export passages.parquet\npplx-search export vectors.npz --no-text --in ~/Documents",
        description="Vectors are int8 codes: compare them by cosine. Parquet needs pyarrow.",
    )
    parser.add_argument("out", type=Path, metavar="FILE", help=".parquet or .npz")
    parser.add_argument("--in", dest="folders", action="append", default=[], type=Path, metavar="FOLDER", help="below")
    parser.add_argument("-c", "--collection", action="append", default=[], metavar="NAME", help="of this collection")
    parser.add_argument("--no-text", action="store_true", help="places and vectors alone")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    write = writer_for(args.out)
    if args.out.exists() and not args.force:
        raise InputError(f"{args.out}: exists already; choose another name or --force")
    folders = tuple(os.fsencode(folder.expanduser().absolute()) for folder in args.folders)
    partial = args.out.with_name(f".{args.out.stem}.partial{args.out.suffix}")
    with open_index(args) as store:
        serving = store.vectors.serving
        if serving is None:
            raise InputError("the index is empty; begin with: pplx-search add FOLDER")
        wanted = Filter(collections=tuple(args.collection), folders=folders)
        try:
            n_rows = write(partial, passages(store, wanted, with_text=not args.no_text), serving.dim)
            partial.replace(args.out)
        finally:
            partial.unlink(missing_ok=True)
    say(f"{n_rows:,} passages with vectors of {serving.dim} dimensions")
    print(args.out)
    return 0
