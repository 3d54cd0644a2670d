"""Open the index and the model; shared by all commands."""

import argparse
import os
from pathlib import Path
from typing import Any

import pplx_edge
from pplx_edge import Embedder
from pplx_edge.errors import InputError, OfflineError
from pplx_kit import terminal
from pplx_kit.options import positive
from pplx_kit.terminal import printable
from pplx_search.store import Store
from pplx_search.store.database import DATABASE_FILE

DEFAULT_MODEL = "nano"
DEFAULT_COLLECTION = "default"
_PATH_CHARS, _PATH_HEAD = 160, 50  # longest path shown, and how much of its start


def say(message: str) -> None:
    """Print a message to stderr as one line, with control characters escaped."""
    terminal.say(message, program="pplx-search")


def open_index(args: argparse.Namespace, *, write: bool = False) -> Store:
    """Open the index given by `--home`. Raises InputError if it does not exist and `write` is False."""
    if not write and not (args.home / DATABASE_FILE).exists():
        home = shown_path(os.fsencode(args.home), from_here=False)
        raise InputError(f"there is no index in {home}; start with: pplx-search add FOLDER")
    return Store.open(args.home, write=write)


def open_model(name: str, args: argparse.Namespace) -> Embedder:
    """Open a model. One that is not on this machine is downloaded once, unless `--offline` is given."""
    threads = getattr(args, "threads", None)
    try:
        return pplx_edge.load(name, offline=True, threads=threads)
    except OfflineError:
        if args.offline:
            raise
        say(f"downloading {name}, which is not on this machine yet; after that, no network is needed")
        return pplx_edge.load(name, offline=False, threads=threads)


def model_of(store: Store, args: argparse.Namespace) -> tuple[Embedder, dict[str, Any]]:
    """Open the model of the index, and return it with the settings of its vectors.

    Raises InputError if the index is empty, or if the weights of the model have changed.
    """
    serving = store.vectors.serving
    if serving is None:
        raise InputError("the index is empty; start with: pplx-search add FOLDER")
    settings = dict(serving.settings)
    model = open_model(str(settings["model"]), args)
    if model.fingerprint != settings["weights"]:
        raise InputError(
            f"the model {settings['model']} is not the one that the index was built with; "
            f"to re-embed all documents, run: pplx-search reembed --model {settings['model']}"
        )
    return model, settings


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for opening the model."""
    parser.add_argument("--offline", action="store_true", help="Never use the network, not even to download the model.")
    parser.add_argument("--threads", type=positive, metavar="N", help="Number of CPU threads (default: all).")


def shown_path(path: bytes, *, from_here: bool = True) -> str:
    """Return a path for display, on one line, with the middle of a very long path replaced by an ellipsis.

    The path is relative to the current directory if it is inside it and `from_here` is True, or starts with `~`.
    """
    text = os.fsdecode(path)
    for above, sign in ((str(Path.cwd()) if from_here else "", ""), (str(Path.home()), f"~{os.sep}")):
        if len(above) > 1 and text.startswith(above + os.sep):
            text = sign + text.removeprefix(above + os.sep)
            break
    text = printable(text)
    return text if len(text) <= _PATH_CHARS else f"{text[:_PATH_HEAD]}…{text[_PATH_HEAD + 1 - _PATH_CHARS :]}"
