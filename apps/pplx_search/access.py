"""Open the index and the model that the options of a command name."""

import argparse
import os
from typing import Any

import pplx_edge
from pplx_edge import Embedder
from pplx_edge.errors import InputError, OfflineError
from pplx_kit.warm import WarmEmbedder, find_warm
from pplx_search.console import say, shown_path
from pplx_search.store import Store
from pplx_search.store.database import DATABASE_FILE


class WeightsChanged(InputError):
    """The model of an index has other weights than those that its vectors come from, so it cannot encode queries."""


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


def settings_of_index(store: Store) -> dict[str, Any]:
    """Return the settings of the vectors that searches use. Raises InputError if the index is empty."""
    serving = store.vectors.serving
    if serving is None:
        raise InputError(EMPTY)
    return dict(serving.settings)


def model_of(store: Store, args: argparse.Namespace) -> tuple[Embedder, dict[str, Any]]:
    """Return the opened model of the index, on the backend that computed its vectors, and the settings of its vectors.

    Raises InputError if the index is empty, and WeightsChanged if the weights of the model have changed.
    """
    settings = settings_of_index(store)
    model = open_model(str(settings["model"]), args, str(settings["backend"]))
    try:
        require_same_weights(model, settings)
    except WeightsChanged:
        model.close()
        raise
    return model, settings


def query_model_of(store: Store, args: argparse.Namespace) -> Embedder | WarmEmbedder:
    """Return a model that encodes queries for the index: over a running server that has it, or opened here.

    Raises InputError and WeightsChanged like `model_of`.
    """
    settings = settings_of_index(store)
    if not args.threads and (
        found := find_warm(str(settings["model"]), backend=str(settings["backend"]), offline=True)
    ):
        require_same_weights(found, settings)
        return found
    return model_of(store, args)[0]


def require_same_weights(model: Embedder | WarmEmbedder, settings: dict[str, Any]) -> None:
    """Raise WeightsChanged if a model has other weights than the one that the vectors come from."""
    vectors_of = (settings.get("weights", model.fingerprint), settings.get("dim", model.dim))
    if (model.fingerprint, model.dim) != vectors_of:
        raise WeightsChanged(
            f"the model {settings['model']} is not the one that the index was built with, so searches use words alone; "
            f"to re-embed all documents, run: pplx-search reembed --model {settings['model']}"
        )
