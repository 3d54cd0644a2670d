"""The inference backends, one per runtime: choose the backend of a model directory, and open a session.

The table of backends is `pplx_edge.registry`. Only the module of the requested backend is imported.
"""

import platform
import sys
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pplx_edge.errors import ArtifactError, EdgeError, MissingExtra
from pplx_edge.registry import (
    BACKENDS,
    DEFAULT_BACKEND,
    Backend,
    backend_named,
    backend_of_format,
    entry,
    require_format,
)
from pplx_edge.types import SESSION_DEFAULTS, Session, SessionOptions
from pplx_edge.vectors.soundness import require_sound
from pplx_edge.weights.artifact import Artifact, is_artifact, ready_made, ready_made_files
from pplx_edge.weights.checkpoint import has_weights


def backend_for(directory: Path, name: str = "auto", artifact_format: str | None = None) -> Backend:
    """Return the backend that should open a model directory.

    `auto` selects the backend of `artifact_format` if it is given. Otherwise it selects the backend that opens the
    files in the directory: for a converted model the backend of its format, or the default backend of this machine if
    that opens the format too; that of ready-made model files; and for a checkpoint the default backend. Raises
    InputError for an unknown backend or format, and ArtifactError if no backend opens the artifact.
    """
    if name != "auto":
        return backend_named(name)
    if artifact_format is not None:
        return require_format(artifact_format)
    if is_artifact(directory):
        stored = Artifact.open(directory).format
        if not (found := backend_of_format(stored)):
            raise ArtifactError(f"{directory}: contains {stored}, which no backend of this release opens")
        others = [backend for backend in BACKENDS.values() if stored in backend.also_opens]
        default = default_backend() if others else found
        return default if default in others else found
    if not has_weights(directory) and (found := ready_made(directory)):
        return found
    return default_backend()


def default_backend() -> Backend:
    """Return the backend that opens checkpoints on this machine: mlx on Apple Silicon, elsewhere native or onnx.

    Warns once if the backend that is meant for this machine cannot be used.
    """
    machine = f"{sys.platform}-{platform.machine()}"
    usable = (
        backend for backend in BACKENDS.values() if machine in backend.default_on and _meets_requirement(backend.name)
    )
    return next(usable, DEFAULT_BACKEND)


@cache
def _meets_requirement(name: str) -> bool:
    backend = BACKENDS[name]
    try:
        if backend.requirement:
            entry(backend.requirement)()
    except EdgeError as error:
        warnings.warn(
            f"the {backend.name} backend cannot be used: {error}; models run on {DEFAULT_BACKEND.name}", stacklevel=4
        )
        return False
    return True


def open_session(backend: Backend, directory: Path, options: SessionOptions = SESSION_DEFAULTS) -> Session:
    """Open a model and return the session.

    Files that another tool made are probed first: see `vectors.soundness`. A backend that opens checkpoints runs our
    own encoder on their weights, so there is nothing to probe. Raises MissingExtra if the backend's package is not
    installed, InputError for an option that the backend does not support, ArtifactError for an artifact of another
    backend, and ModelError for a graph that is not a sound bidirectional encoder. Errors of the backend propagate.
    """
    require_installed(backend)
    options.require_only(backend.name, *backend.options)
    if is_artifact(directory) and (stored := Artifact.open(directory).format) not in (
        *backend.formats,
        *backend.also_opens,
    ):
        raise ArtifactError(f"{directory}: contains {stored}, which the {backend.name} backend does not open")
    session = entry(backend.session)(directory, options)
    if not is_artifact(directory) and not backend.opens_checkpoints:
        require_sound(session, next(iter(ready_made_files(directory, backend)), directory))
    return session


def require_installed(backend: Backend) -> None:
    """Raise MissingExtra, with the command that installs the package, if the backend's package is not usable.

    It is looked up without importing it: whether it is installed, with the compiled modules that the backend needs.
    """
    if not backend.package:
        return
    found = find_spec(backend.package)
    folders = [Path(folder) for folder in (found and found.submodule_search_locations) or ()]
    lacking = [name for name in backend.modules if not any(any(folder.glob(f"{name}.*")) for folder in folders)]
    if found and not lacking:
        return
    problem = f"cannot use the installed {backend.package}, which lacks {', '.join(lacking)}" if found else ""
    if backend.newest_python and sys.version_info[:2] > backend.newest_python:
        newest, this = (f"{major}.{minor}" for major, minor in (backend.newest_python, sys.version_info[:2]))
        problem = (
            f"{problem or 'needs ' + backend.package}; there are no builds of it for Python {this}, so make a virtual "
            f"environment with Python {newest} and run"
        )
    elif found:
        problem += "; install it again from a wheel"
    raise MissingExtra(f"the {backend.name} backend", backend.extra, problem)
