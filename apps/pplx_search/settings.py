"""What vectors of an index depend on, where an index lies, and what is kept in it of both."""

import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pplx_edge import Embedder, StreamOptions
from pplx_edge.errors import InputError

HOME_VARIABLE = "PPLX_SEARCH_HOME"
CHUNK_TOKENS = 256
# Windows short enough that attention costs little; what a window cannot see of its document's beginning rides along.
INDEX_OPTIONS = StreamOptions(chunk_tokens=CHUNK_TOKENS, window=2048, margin=256, sticky=64)


def default_home() -> Path:
    """Where the index lies unless it is said: the variable PPLX_SEARCH_HOME, or the system's folder for such data."""
    if named := os.environ.get(HOME_VARIABLE):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "pplx-search"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "pplx-search"


def options_for(model: Embedder, options: StreamOptions = INDEX_OPTIONS) -> StreamOptions:
    """The options as a model can have them: a shorter window, and no more chunk than that, where it reads less."""
    window = min(options.window or model.max_tokens, model.max_tokens)
    if window == options.window:
        return options
    share = window / (options.window or window)
    chunk_tokens = max(1, min(options.chunk_tokens, window // 4))
    return StreamOptions(
        chunk_tokens=chunk_tokens,
        window=window,
        margin=int((options.margin or 0) * share),
        sticky=int((options.sticky or 0) * share),
    )


def settings_of(name: str, model: Embedder, options: StreamOptions) -> dict[str, Any]:
    """What vectors depend on, as plain values; `name` is what the model was opened by."""
    cut = {field: value for field, value in asdict(options).items() if field not in ("format", "memory_mb")}
    return {"model": name, "weights": model.weights, "backend": model.session.backend, "dim": model.dim} | cut


def options_from(settings: dict[str, Any]) -> StreamOptions:
    """The options of an index that was made before. Raises InputError when the settings are of another release."""
    try:
        names = ("window", "margin", "separator", "sticky", "chunk_tokens", "overlap")
        return StreamOptions(**{name: settings[name] for name in names})
    except (KeyError, TypeError) as error:
        raise InputError(f"the index was made by another release ({error}); make a new one") from error


def fingerprint_of(settings: dict[str, Any]) -> str:
    """A name for the settings that vectors depend on; how the model was called is not one of them."""
    kept = {name: value for name, value in settings.items() if name != "model"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:32]
