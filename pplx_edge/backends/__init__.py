"""The inference backends, one per array library. `open_session` imports only the requested one."""

import platform
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from pplx_edge.errors import ArtifactError, InputError, MissingExtra
from pplx_edge.types import SESSION_DEFAULTS, Session, SessionOptions
from pplx_edge.weights.artifact import Artifact, family_of, is_artifact, ready_graphs
from pplx_edge.weights.checkpoint import has_weights

SESSIONS = {
    "onnx": "pplx_edge.backends.onnx_session",
    "mlx": "pplx_edge.backends.mlx_session",
    "coreml": "pplx_edge.backends.coreml_session",
}
# Optional backends: the package that each requires, and the extra that installs it.
PACKAGES = {"mlx": ("mlx", "mlx"), "coreml": ("coremltools", "coreml")}


def backend_for(directory: Path, backend: str = "auto", format: str | None = None) -> str:
    """Return the name of the backend that should open a model directory.

    `auto` selects the backend of `format` if a format is given. Otherwise it selects the backend that opens the files
    in the directory: that of the artifact format for a converted model, onnx for ready-made ONNX graphs, and for a
    checkpoint the default backend of this machine. Raises InputError for an unknown backend, and ArtifactError if no
    backend opens the artifact.
    """
    if backend != "auto":
        return _require_known(backend)
    if format is not None and family_of(format) in SESSIONS:
        return family_of(format)
    if is_artifact(directory):
        format = Artifact.open(directory).format
        if (found := family_of(format)) not in SESSIONS:
            raise ArtifactError(f"{directory}: contains {format}, which no backend of this release opens")
        return found
    if ready_graphs(directory) and not has_weights(directory):
        return "onnx"
    return default_backend()


def default_backend() -> str:
    """Return the default backend of this machine: mlx on Apple Silicon, onnx elsewhere."""
    on_apple_silicon = sys.platform == "darwin" and platform.machine() == "arm64"
    return "mlx" if on_apple_silicon and "mlx" in SESSIONS else "onnx"


def open_session(backend: str, directory: Path, options: SessionOptions = SESSION_DEFAULTS) -> Session:
    """Open a model and return the session.

    Raises MissingExtra if the backend's package is not installed, and InputError for an option that the backend does
    not support. Errors of the backend propagate.
    """
    require_installed(_require_known(backend))
    return import_module(SESSIONS[backend]).open_session(directory, options)


def require_installed(backend: str) -> None:
    """Raise MissingExtra, with the command that installs the package, if the backend's package is not installed."""
    package, extra = PACKAGES.get(backend, ("", ""))
    if package and find_spec(package) is None:
        raise MissingExtra(f"the {backend} backend", extra)


def _require_known(backend: str) -> str:
    if backend not in SESSIONS:
        raise InputError(f"unknown backend {backend!r}: choose auto or one of {', '.join(SESSIONS)}")
    return backend
