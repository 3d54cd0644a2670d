"""A model directory made ready for a backend: what can be opened as it is, or is converted once into the cache.

The one place, beside the command line, that reaches for the converters, and only when a checkpoint is opened that was
not converted before.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pplx_edge.errors import InputError
from pplx_edge.weights import hub
from pplx_edge.weights.artifact import FORMATS, Artifact, family_of, format_revision, is_artifact, ready_graphs, sha256
from pplx_edge.weights.checkpoint import has_weights, weight_files

_PROGRESS_DELAY_SECONDS = 2.0
_OPENS_CHECKPOINTS = ("mlx",)  # backends that need no conversion


def ready_directory(
    directory: Path, backend: str, format: str | None = None, *, source_name: str | None = None
) -> Path:
    """The directory that the backend opens: the given one, or its conversion in the cache.

    `format` names the conversion (None: the backend's default, or none for a backend that opens checkpoints),
    `source_name` what its manifest calls the source.
    A bar on a terminal's stderr shows a conversion that takes long.

    Raises InputError when the directory holds an artifact of another format or the format is not the backend's, and
    what the converter raises.
    """
    wanted = format or FORMATS[backend][0]
    if family_of(wanted) != backend:
        raise InputError(f"format {wanted!r} is not one that the {backend} backend opens")
    if is_artifact(directory):
        found = Artifact.open(directory).format
        if format not in (None, found):
            raise InputError(f"{directory}: holds {found}, {format} was asked for; open its source or convert it again")
        return directory
    if format is None and (backend in _OPENS_CHECKPOINTS or _holds_only_graphs(directory)):
        return directory
    return _converted(directory, wanted, source_name)


def _holds_only_graphs(directory: Path) -> bool:
    return bool(ready_graphs(directory)) and not has_weights(directory)


@contextmanager
def conversion_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """Takes `(steps done, steps in all)` and draws them on stderr when that is a terminal and the work is long."""
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
        if not is_artifact(target):  # else another process was faster, with the same result
            raise
    return target


def _fingerprint(directory: Path, revision: int) -> str:
    """Changes whenever the weights, the tokenizer, the config or the converter do."""
    digest = hashlib.sha256(str(revision).encode())
    for path in [*weight_files(directory), directory / "config.json", directory / "tokenizer.json"]:
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns} ".encode())
            if stat.st_size < 1 << 24:
                digest.update(sha256(path).encode())
    return digest.hexdigest()[:16]
