"""Work files: checkpoints, conversions and exports, made once and reused only while they are what a run would make.

Each stands in a directory of its own beside a note of everything that it was made from. Another seed, shape, source
file or library version is another note, and the directory is made anew.
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
_SPARE_BYTES = 1_000_000_000  # what a run must leave free, so that it never fills the disk for others


def default_work() -> Path:
    """The directory of work files when none is given: `bench` in pplx-edge's cache."""
    return hub.cache_directory() / "bench"


def prepared(
    directory: Path, made_of: Mapping[str, Any], make: Callable[[Path], object], *, n_bytes: int, scratch_bytes: int = 0
) -> Path:
    """The directory, as it is when its note equals `made_of`, else made by `make(partial)` and renamed into place.

    Raises StorageError when the disk has no room for `n_bytes` of result and `scratch_bytes` of files on the way.
    """
    if is_current(directory, made_of):
        return directory
    require_free(directory, n_bytes + scratch_bytes)
    with storage_errors(directory), replacing_directory(directory, replace=True) as partial:
        make(partial)
        (partial / NOTE_FILE).write_text(_text(made_of), encoding="utf-8")
    return directory


def is_current(directory: Path, made_of: Mapping[str, Any]) -> bool:
    """Whether the directory is there and was made of exactly this."""
    try:
        return (directory / NOTE_FILE).read_text(encoding="utf-8") == _text(made_of)
    except FileNotFoundError:
        return False


def note(directory: Path) -> dict[str, Any]:
    """What a prepared directory was made of."""
    return json.loads((directory / NOTE_FILE).read_text(encoding="utf-8"))


def require_free(directory: Path, n_bytes: int) -> None:
    """Raises StorageError unless the disk that the directory is (or will be) on has room, with some to spare."""
    existing = next(path for path in [directory, *directory.absolute().parents] if path.exists())
    free = shutil.disk_usage(existing).free
    if free < n_bytes + _SPARE_BYTES:
        raise StorageError(
            f"{directory}: needs {(n_bytes + _SPARE_BYTES) / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
            "choose another disk with --work"
        )


def fingerprint(*modules: str) -> str:
    """Changes when the source of any of these modules or packages does. None of them is imported."""
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
    """Bytes of all files below a directory, links not followed."""
    return sum((Path(base) / name).lstat().st_size for base, _, names in os.walk(directory) for name in names)


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Appends JSON objects to a JSON Lines file, after what is whole in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_partial_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _text(made_of: Mapping[str, Any]) -> str:
    return json.dumps(made_of, indent=2, sort_keys=True) + "\n"


def _drop_partial_line(path: Path) -> None:
    """Cuts what follows the last newline of a file: what a killed run left of its last line."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            file.truncate(whole)
