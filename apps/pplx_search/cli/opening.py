"""Opening index and model, alike in all commands."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import pplx_edge
from pplx_edge import Embedder
from pplx_edge.errors import InputError, OfflineError
from pplx_kit.options import positive
from pplx_kit.terminal import printable
from pplx_search.store import Store
from pplx_search.store.database import DATABASE_FILE

DEFAULT_MODEL = "nano"
DEFAULT_COLLECTION = "default"
_PATH_CHARS, _PATH_HEAD = 160, 50  # that are shown of a path at most, and of its beginning


def say(message: str) -> None:
    """Writes one line to stderr, whatever the message holds."""
    print(f"pplx-search: {printable(message)}", file=sys.stderr)


def open_index(args: argparse.Namespace, *, write: bool = False) -> Store:
    """The index of the command line. Raises InputError when there is none to read."""
    if not write and not (args.home / DATABASE_FILE).exists():
        home = shown_path(os.fsencode(args.home), from_here=False)
        raise InputError(f"there is no index in {home}; begin with: pplx-search add FOLDER")
    return Store.open(args.home, write=write)


def open_model(name: str, args: argparse.Namespace) -> Embedder:
    """A model that is on this machine; one that is not is fetched once, unless `--offline` forbids it."""
    threads = getattr(args, "threads", None)
    try:
        return pplx_edge.load(name, offline=True, threads=threads)
    except OfflineError:
        if args.offline:
            raise
        say(f"{name} is not on this machine yet and is fetched once; from then on nothing uses the network")
        return pplx_edge.load(name, offline=False, threads=threads)


def model_of(store: Store, args: argparse.Namespace) -> tuple[Embedder, dict[str, Any]]:
    """The model whose vectors serve, and the settings that they were made with.

    Raises InputError when there are none, or when the model of that name has other weights now.
    """
    serving = store.vectors.serving
    if serving is None:
        raise InputError("the index is empty; begin with: pplx-search add FOLDER")
    settings = dict(serving.settings)
    model = open_model(str(settings["model"]), args)
    if model.weights != settings["weights"]:
        raise InputError(
            f"the model {settings['model']} is not the one that the index was made with; "
            f"embed everything anew: pplx-search reembed --model {settings['model']}"
        )
    return model, settings


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How the model is opened."""
    parser.add_argument("--offline", action="store_true", help="never use the network, not even to fetch the model")
    parser.add_argument("--threads", type=positive, metavar="N", help="processor threads; default all")


def shown_path(path: bytes, *, from_here: bool = True) -> str:
    """A path as people read it, on one line; its middle is left out where it is very long.

    It is told from the current directory where it lies below that and `from_here`, or from `~`.
    """
    text = os.fsdecode(path)
    for above, sign in ((str(Path.cwd()) if from_here else "", ""), (str(Path.home()), f"~{os.sep}")):
        if len(above) > 1 and text.startswith(above + os.sep):
            text = sign + text.removeprefix(above + os.sep)
            break
    text = printable(text)
    return text if len(text) <= _PATH_CHARS else f"{text[:_PATH_HEAD]}…{text[_PATH_HEAD + 1 - _PATH_CHARS :]}"
