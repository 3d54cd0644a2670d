"""The settings that the vectors of an index depend on."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pplx_edge import Embedder, StreamOptions
from pplx_edge.errors import InputError

CHUNK_TOKENS = 256
# Short windows keep attention cheap; `heading_tokens` repeats the title and headings in each of them.
INDEX_OPTIONS = StreamOptions(chunk_tokens=CHUNK_TOKENS, window=2048, margin=256, heading_tokens=64)
_RENAMED = {"sticky": "heading_tokens"}  # names of settings in the indexes of earlier releases


def options_for(model: Embedder, options: StreamOptions = INDEX_OPTIONS) -> StreamOptions:
    """Return the options, with window and chunks scaled down if the model supports fewer tokens."""
    window = min(options.window or model.max_tokens, model.max_tokens)
    if window == options.window:
        return options
    share = window / (options.window or window)
    chunk_tokens = max(1, min(options.chunk_tokens, window // 4))
    return StreamOptions(
        chunk_tokens=chunk_tokens,
        window=window,
        margin=int((options.margin or 0) * share),
        heading_tokens=int((options.heading_tokens or 0) * share),
    )


def settings_of(name: str, model: Embedder, options: StreamOptions) -> dict[str, Any]:
    """Return the settings that vectors depend on as plain values. `name` is the name given to open the model."""
    cut = {field: value for field, value in asdict(options).items() if field not in ("markup", "window_mb")}
    return {"model": name, "weights": model.fingerprint, "backend": model.session.backend, "dim": model.dim} | cut


def options_from(settings: dict[str, Any]) -> StreamOptions:
    """Return the options stored in an index. Raises InputError if they come from another release."""
    try:
        names = ("window", "margin", "separator", "heading_tokens", "chunk_tokens", "overlap")
        return StreamOptions(**{name: settings[name] for name in names})
    except (KeyError, TypeError) as error:
        raise InputError(f"the index was created by another release ({error}); create a new one") from error


def with_current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that were stored in an index with the names that this release uses."""
    return {_RENAMED.get(name, name): value for name, value in settings.items()}


def fingerprint_of(settings: Mapping[str, Any]) -> str:
    """Return a hash of the settings that vectors depend on, excluding the name of the model."""
    kept = {name: value for name, value in settings.items() if name != "model"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:32]
