"""Work files of benchmarks: checkpoints, conversions and exports that are made once and then reused.

Each directory contains a note of everything that it was made from: seed, shape, source files and library versions. A
run whose note differs makes the directory again.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import util
from pathlib import Path
from typing import Any

from pplx_edge.errors import StorageError
from pplx_edge.files import replacing_directory, storage_errors
from pplx_edge.weights import hub

NOTE_FILE = "bench.json"
_SPARE_BYTES = 1_000_000_000  # always left free, so that a run never fills the disk


def default_work() -> Path:
    """Return the default directory of work files: `bench` in the cache of pplx-edge."""
    return hub.cache_directory() / "bench"


def prepared(
    directory: Path, made_of: Mapping[str, Any], make: Callable[[Path], object], *, n_bytes: int, scratch_bytes: int = 0
) -> Path:
    """Return the directory, after making it with `make(partial)` and renaming it unless its note equals `made_of`.

    Raises StorageError if the disk has no room for `n_bytes` of results and `scratch_bytes` of temporary files.
    """
    if is_current(directory, made_of):
        return directory
    require_free(directory, n_bytes + scratch_bytes)
    with storage_errors(directory), replacing_directory(directory, replace=True) as partial:
        make(partial)
        (partial / NOTE_FILE).write_text(_text(made_of), encoding="utf-8")
    return directory


def is_current(directory: Path, made_of: Mapping[str, Any]) -> bool:
    """Return whether the directory exists and its note equals `made_of`."""
    try:
        return (directory / NOTE_FILE).read_text(encoding="utf-8") == _text(made_of)
    except FileNotFoundError:
        return False


def note(directory: Path) -> dict[str, Any]:
    """Return the note of a prepared directory."""
    return json.loads((directory / NOTE_FILE).read_text(encoding="utf-8"))


def require_free(directory: Path, n_bytes: int) -> None:
    """Raise StorageError unless the disk of the directory, which need not exist, has `n_bytes` and a reserve free."""
    existing = next(path for path in [directory, *directory.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free
    if free < n_bytes + _SPARE_BYTES:
        raise StorageError(
            f"{directory}: needs {(n_bytes + _SPARE_BYTES) / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "choose another disk with --work"
        )


def fingerprint(*modules: str) -> str:
    """Return a hash of the source files of modules and packages, without importing them."""
    digest = hashlib.sha256()
    for module in modules:
        found = util.find_spec(module)
        if found is None or found.origin is None:
            continue
        origin = Path(found.origin)
        for path in sorted(origin.parent.glob("*.py")) if found.submodule_search_locations else [origin]:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def directory_bytes(directory: Path) -> int:
    """Return the total bytes of the files in a directory and its subdirectories, without following links."""
    return sum((Path(base) / name).lstat().st_size for base, _, names in os.walk(directory) for name in names)


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append JSON objects to a JSON Lines file, after dropping an incomplete last line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_partial_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def say(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def _text(made_of: Mapping[str, Any]) -> str:
    return json.dumps(made_of, indent=2, sort_keys=True) + "\n"


def _drop_partial_line(path: Path) -> None:
    """Remove the text after the last newline, which a killed run leaves."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            file.truncate(whole)
