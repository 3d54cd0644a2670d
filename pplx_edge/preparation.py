"""Prepare a model directory for a backend: use it directly, or convert it once and cache the result.

Apart from the command line, only this module imports the converters, and only to convert a checkpoint that has no
cached conversion yet.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pplx_edge import layout
from pplx_edge.errors import InputError
from pplx_edge.weights import hub
from pplx_edge.weights.artifact import FORMATS, Artifact, family_of, format_revision, is_artifact, ready_graphs, sha256
from pplx_edge.weights.checkpoint import has_weights, weight_files

_PROGRESS_DELAY_SECONDS = 2.0
_OPENS_CHECKPOINTS = ("mlx",)  # backends that need no conversion


def ready_directory(
    directory: Path, backend: str, format: str | None = None, *, source_name: str | None = None
) -> Path:
    """Return the directory that the backend should open: the given one, or its conversion in the cache.

    `format` is the artifact format. None selects the backend's default, or no conversion if the backend opens
    checkpoints directly. `source_name` is the name of the source in the manifest. A long conversion shows a progress
    bar if stderr is a terminal.

    Raises InputError if the directory contains an artifact of a different format or the backend does not open the
    format. Errors of the converter propagate.
    """
    wanted = format or FORMATS[backend][0]
    if family_of(wanted) != backend:
        raise InputError(f"the {backend} backend does not open format {wanted!r}")
    if is_artifact(directory):
        found = Artifact.open(directory).format
        if format not in (None, found):
            raise InputError(f"{directory}: contains {found}, not {format}; load its source or convert it again")
        return directory
    if format is None and (backend in _OPENS_CHECKPOINTS or _holds_only_graphs(directory)):
        return directory
    return _converted(directory, wanted, source_name)


def _holds_only_graphs(directory: Path) -> bool:
    return bool(ready_graphs(directory)) and not has_weights(directory)


@contextmanager
def conversion_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Provide a callback `(steps done, total steps)` that draws a progress bar on stderr.

    The bar appears only on a terminal, and only if the conversion takes more than two seconds.
    """
    from tqdm import tqdm

    with tqdm(desc=f"converting {name}", unit="step", delay=_PROGRESS_DELAY_SECONDS, disable=None, leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _converted(directory: Path, format: str, source_name: str | None) -> Path:
    from pplx_convert import convert

    name = f"{directory.resolve().name}-{format}-{_fingerprint(directory, format_revision(format))}"
    target = hub.cache_directory() / "artifacts" / name
    if is_artifact(target):
        return target
    try:
        with conversion_bar(source_name or directory.name) as show:
            convert(directory, target, format, source_name=source_name, on_progress=show)
    except InputError:
        if not is_artifact(target):  # otherwise another process finished the same conversion first
            raise
    return target


def _fingerprint(directory: Path, revision: int) -> str:
    """Return a hash that changes with any file that a conversion reads, and with the converter revision."""
    digest = hashlib.sha256(str(revision).encode())
    others = [directory / name for name in (layout.CONFIG, layout.TOKENIZER, layout.EQUALIZATION)]
    for path in [*weight_files(directory), *others]:
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns} ".encode())
            if stat.st_size < 1 << 24:
                digest.update(sha256(path).encode())
    return digest.hexdigest()[:16]
