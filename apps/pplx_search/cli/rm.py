"""`pplx-search rm`: folders, files or collections out of the index."""

import argparse
import os
from pathlib import Path
from typing import Any

from pplx_edge.errors import InputError
from pplx_kit.options import add_command
from pplx_kit.terminal import human_bytes
from pplx_search.cli.opening import DEFAULT_COLLECTION, open_index, say, shown_path
from pplx_search.store import Collection, Store


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "rm",
        "take folders, files or collections out of the index; the files themselves stay",
        "pplx-search rm ~/Documents/old\npplx-search rm --collection mail",
        description="A folder that was added is not looked at any more. Of a folder or file below one, what is indexed "
        "goes, and comes back with the next update unless a rule of the collection passes over it.",
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="folders and files")
    parser.add_argument("-c", "--collection", metavar="NAME", help="the whole collection")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if bool(args.paths) == bool(args.collection):
        raise InputError("say either which paths or which collection")
    with open_index(args, write=True) as store:
        if args.collection:
            store.collections.remove(args.collection)
        for path in args.paths:
            _remove(store, os.fsencode(path.expanduser().absolute()))
        swept = store.compact()
    say(f"done; {human_bytes(max(0, swept.bytes_before - swept.bytes_after))} given back")
    return 0


def _remove(store: Store, path: bytes) -> None:
    collections = store.collections.all()
    of_its_own = [root for collection in collections for root in collection.roots if root.path == path]
    for root in of_its_own:
        store.collections.remove_root(root.id)
    if not store.files.remove(path) and not of_its_own:
        raise InputError(f"{os.fsdecode(path)}: nothing of it is in the index")
    for collection in collections:
        for root in collection.roots:
            if path.startswith(root.path.rstrip(b"/") + b"/"):
                again = _keeping_out(collection, root.path, path)
                say(f"{shown_path(path)} comes back with the next update; to keep it out: {again}")


def _keeping_out(collection: Collection, root: bytes, path: bytes) -> str:
    """The command that passes over a path below a root, beside what the collection's rules pass over already."""
    globs = [(name, glob) for name in ("include", "exclude") for glob in collection.rules.get(name, ())]
    globs.append(("exclude", os.fsdecode(path[len(root.rstrip(b"/")) :])))
    options = [] if collection.name == DEFAULT_COLLECTION else [f"-c {collection.name}"]
    options += ["--hidden"] if collection.rules.get("hidden") else []
    options += [f"--{kind} '{glob}'" for kind, glob in globs]
    return f"pplx-search add {shown_path(root, from_here=False)} {' '.join(options)}"
