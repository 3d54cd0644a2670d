"""One session per array library. `open_session` imports the one that is asked for, and nothing else."""

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
# Backends that not every installation has: the package that they stand on, and the extra that brings it.
PACKAGES = {"mlx": ("mlx", "mlx"), "coreml": ("coremltools", "coreml")}


def backend_for(directory: Path, backend: str = "auto", format: str | None = None) -> str:
    """The backend that opens what is in a directory.

    `auto` goes by the format that is asked for, and else by what is there: a converted model has one that opens it,
    ready ONNX graphs have onnx, and a checkpoint has the machine's own: mlx on Apple Silicon, onnx elsewhere. Raises
    InputError for an unknown name.
    """
    if backend != "auto":
        return _require_known(backend)
    if format is not None and family_of(format) in SESSIONS:
        return family_of(format)
    if is_artifact(directory):
        format = Artifact.open(directory).format
        if (found := family_of(format)) not in SESSIONS:
            raise ArtifactError(f"{directory}: holds {format}, which no backend of this release opens")
        return found
    if ready_graphs(directory) and not has_weights(directory):
        return "onnx"
    return default_backend()


def default_backend() -> str:
    """mlx on Apple Silicon, onnx elsewhere."""
    on_apple_silicon = sys.platform == "darwin" and platform.machine() == "arm64"
    return "mlx" if on_apple_silicon and "mlx" in SESSIONS else "onnx"


def open_session(backend: str, directory: Path, options: SessionOptions = SESSION_DEFAULTS) -> Session:
    """An opened model.

    Raises MissingExtra when the backend's package is not installed, InputError for an option that it does not have,
    and what the backend raises.
    """
    require_installed(_require_known(backend))
    return import_module(SESSIONS[backend]).open_session(directory, options)


def require_installed(backend: str) -> None:
    """Raises MissingExtra with the command that installs what a backend stands on."""
    package, extra = PACKAGES.get(backend, ("", ""))
    if package and find_spec(package) is None:
        raise MissingExtra(f"the {backend} backend", extra)


def _require_known(backend: str) -> str:
    if backend not in SESSIONS:
        raise InputError(f"unknown backend {backend!r}: choose auto or one of {', '.join(SESSIONS)}")
    return backend
