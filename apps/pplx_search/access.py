"""Open the index and the model that the options of a command name."""

import argparse
import os
from typing import Any

import pplx_edge
from pplx_edge import Embedder
from pplx_edge.errors import InputError, OfflineError
from pplx_search.console import say, shown_path
from pplx_search.store import Store
from pplx_search.store.database import DATABASE_FILE

EMPTY = "the index is empty; start with: pplx-search add FOLDER"


def open_index(args: argparse.Namespace, *, write: bool = False) -> Store:
    """Return the opened index of `--home`. Raises InputError if it does not exist and `write` is False."""
    if not write and not (args.home / DATABASE_FILE).exists():
        home = shown_path(os.fsencode(args.home), from_here=False)
        raise InputError(f"there is no index in {home}; start with: pplx-search add FOLDER")
    return Store.open(args.home, write=write)


def open_model(name: str, args: argparse.Namespace, backend: str = "auto") -> Embedder:
    """Return an opened model. One that is not on this machine is downloaded once, unless `--offline` is given."""
    try:
        return pplx_edge.load(name, backend=backend, offline=True, threads=args.threads)
    except OfflineError:
        if args.offline:
            raise
        say(f"downloading {name}, which is not on this machine yet; after that, no network is needed")
        return pplx_edge.load(name, backend=backend, offline=False, threads=args.threads)


def model_of(store: Store, args: argparse.Namespace) -> tuple[Embedder, dict[str, Any]]:
    """Return the opened model of the index, on the backend that computed its vectors, and the settings of its vectors.

    Raises InputError if the index is empty, or if the weights of the model have changed.
    """
    serving = store.vectors.serving
    if serving is None:
        raise InputError(EMPTY)
    settings = dict(serving.settings)
    model = open_model(str(settings["model"]), args, str(settings["backend"]))
    if model.fingerprint != settings["weights"]:
        raise InputError(
            f"the model {settings['model']} is not the one that the index was built with; "
            f"to re-embed all documents, run: pplx-search reembed --model {settings['model']}"
        )
    return model, settings
