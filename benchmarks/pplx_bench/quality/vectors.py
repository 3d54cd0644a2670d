"""Vectors kept on disk under what they were made of, so that a run that was stopped, or has another table to make,
encodes nothing twice."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pplx_bench.quality.encoders import Encoded
from pplx_bench.workdir import require_free
from pplx_edge.files import replacing_file, storage_errors

_TENSOR = "means"


def kept(folder: Path | None, made_of: Sequence[Any], make: Callable[[], Encoded]) -> Encoded:
    """The vectors made of exactly this (anything JSON can hold), from the folder or from `make`; None keeps nothing.

    Raises StorageError when the disk has no room for them.
    """
    if folder is None:
        return make()
    key = hashlib.sha256(json.dumps(list(made_of), ensure_ascii=False).encode()).hexdigest()[:32]
    path = folder / f"{key}.safetensors"
    found = _read(path)
    if found is None:
        found = make()
        _write(path, found)
    return found


def _read(path: Path) -> Encoded | None:
    """What a file holds; None where there is none, or where it is not whole."""
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["encoded"])
            return Encoded(file.get_tensor(_TENSOR), **about)
    except (FileNotFoundError, SafetensorError):
        return None


def _write(path: Path, encoded: Encoded) -> None:
    about = {name: getattr(encoded, name) for name in ("n_tokens", "n_cut", "n_windows", "seconds")}
    require_free(path.parent, encoded.means.nbytes)
    with storage_errors(path), replacing_file(path) as partial:
        save_file({_TENSOR: encoded.means}, partial, metadata={"encoded": json.dumps(about)})
