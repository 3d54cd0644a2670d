"""Resolve the name of a model to files that a backend opens, converting a checkpoint once and caching the result."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pplx_edge import backends, layout
from pplx_edge.errors import InputError
from pplx_edge.registry import Backend, entry
from pplx_edge.types import SESSION_DEFAULTS, Session, SessionOptions
from pplx_edge.weights import hub
from pplx_edge.weights.artifact import Artifact, is_artifact, ready_made, sha256
from pplx_edge.weights.checkpoint import has_weights, weight_files

_PROGRESS_DELAY_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model on this machine and the backend that opens it.

    `source` is the directory that the name stands for. `directory` is the directory to open: `source` itself, or its
    conversion in the cache. `artifact` is the converted model, or None if the backend opens the source directly.
    """

    source: Path
    directory: Path
    backend: Backend
    artifact: Artifact | None

    @property
    def fingerprint(self) -> str:
        """A hash of the files of a converted model, "" for other models."""
        return self.artifact.fingerprint if self.artifact else ""

    def open(self, options: SessionOptions = SESSION_DEFAULTS) -> Session:
        """Load the model and return the session. Raises the errors of `backends.open_session`."""
        return backends.open_session(self.backend, self.directory, options)


def resolve_model(
    name_or_path: str | Path,
    *,
    backend: str = "auto",
    artifact_format: str | None = None,
    revision: str | None = None,
    offline: bool | None = None,
) -> ResolvedModel:
    """Download a model if it is not on this machine, convert it if its backend needs that, and return the result.

    The arguments are those of `pplx_edge.load`. A long conversion shows a progress bar if stderr is a terminal. Raises
    ModelNotFound, OfflineError, MissingExtra, ArtifactError, InputError if the backend does not open the format or the
    model is an artifact of a different format, and the errors of the converter.
    """
    source = hub.locate(name_or_path, revision=revision, offline=offline)
    chosen = backends.backend_for(source, backend, artifact_format)
    backends.require_installed(chosen)
    directory = _ready_directory(source, chosen, artifact_format, hub.source_name(name_or_path))
    artifact = Artifact.open(directory) if is_artifact(directory) else None
    return ResolvedModel(source=source, directory=directory, backend=chosen, artifact=artifact)


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


def _ready_directory(source: Path, backend: Backend, artifact_format: str | None, source_name: str | None) -> Path:
    """Return the directory that the backend should open: the given one, or its conversion in the cache."""
    if artifact_format is not None and artifact_format not in backend.formats:
        raise InputError(f"the {backend.name} backend does not open format {artifact_format!r}")
    if is_artifact(source):
        found = Artifact.open(source).format
        if artifact_format not in (None, found):
            raise InputError(f"{source}: contains {found}, not {artifact_format}; load its source or convert it again")
        return source
    if artifact_format is None and (backend.opens_checkpoints or not backend.formats or _is_ready_made(source)):
        return source
    return _converted(source, backend, artifact_format or backend.default_format, source_name)


def _is_ready_made(directory: Path) -> bool:
    return not has_weights(directory) and ready_made(directory) is not None


def _converted(directory: Path, backend: Backend, artifact_format: str, source_name: str | None) -> Path:
    name = f"{directory.resolve().name}-{artifact_format}-{_fingerprint(directory, backend.revision)}"
    target = hub.cache_directory() / "artifacts" / name
    if is_artifact(target):
        return target
    convert = entry(backend.converter)
    try:
        with conversion_bar(source_name or directory.name) as show:
            convert(directory, target, artifact_format, source_name=source_name, on_progress=show)
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
