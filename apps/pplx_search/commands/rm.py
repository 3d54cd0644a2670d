"""`pplx-search rm`: remove folders, files or collections from the index."""

import argparse
import os
from pathlib import Path
from typing import Any

from pplx_edge.errors import InputError
from pplx_kit.options import add_command
from pplx_kit.terminal import human_bytes
from pplx_search.access import open_index
from pplx_search.console import say, shown_path
from pplx_search.options import DEFAULT_COLLECTION, absolute
from pplx_search.program import COMMANDS
from pplx_search.store import Collection, Store


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "rm",
        COMMANDS["rm"],
        "pplx-search rm ~/Documents/old\npplx-search rm --collection mail",
        description="Removing an added folder stops indexing it. Removing something inside an added folder only "
        "drops it from the index; the next update adds it again unless an --exclude pattern of its collection matches "
        "it. `rm` then prints the `add` command with such a pattern. Give paths or --collection. Exit status: 0 done, "
        "2 error.",
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="Folders and files to remove.")
    parser.add_argument("-c", "--collection", metavar="NAME", help="Remove this whole collection, instead of paths.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if bool(args.paths) == bool(args.collection):
        raise InputError("give either paths or --collection, not both")
    with open_index(args, write=True) as store:
        if args.collection:
            store.collections.remove(args.collection)
        for path in args.paths:
            _remove(store, absolute(path))
        compacted = store.compact()
    say(f"done; freed {human_bytes(max(0, compacted.bytes_before - compacted.bytes_after))} of disk space")
    return 0


def _remove(store: Store, path: bytes) -> None:
    collections = store.collections.all()
    of_its_own = [root for collection in collections for root in collection.roots if root.path == path]
    for root in of_its_own:
        store.collections.remove_root(root.id)
    if not store.files.remove(path) and not of_its_own:
        raise InputError(f"{os.fsdecode(path)}: not in the index")
    for collection in collections:
        for root in collection.roots:
            if path.startswith(root.path.rstrip(b"/") + b"/"):
                again = _keeping_out(collection, root.path, path)
                say(f"the next update will add {shown_path(path)} again; to exclude it, run: {again}")


def _keeping_out(collection: Collection, root: bytes, path: bytes) -> str:
    """Return the command that excludes a path inside a root, keeping the existing rules of the collection."""
    globs = [(name, glob) for name in ("include", "exclude") for glob in collection.rules.get(name, ())]
    globs.append(("exclude", os.fsdecode(path[len(root.rstrip(b"/")) :])))
    options = [] if collection.name == DEFAULT_COLLECTION else [f"-c {collection.name}"]
    options += ["--hidden"] if collection.rules.get("hidden") else []
    options += [f"--{kind} '{glob}'" for kind, glob in globs]
    return f"pplx-search add {shown_path(root, from_here=False)} {' '.join(options)}"
