"""One session per array library. `open_session` imports the one that is asked for, and nothing else."""

from importlib import import_module
from pathlib import Path

from pplx_edge.errors import InputError
from pplx_edge.types import Session

SESSIONS = {"onnx": "pplx_edge.backends.onnx_session"}


def require_backend(backend: str) -> str:
    """The backend to use. `auto` is the first of the table. Raises InputError for an unknown name."""
    if backend == "auto":
        return next(iter(SESSIONS))
    if backend not in SESSIONS:
        raise InputError(f"unknown backend {backend!r}: choose auto or one of {', '.join(SESSIONS)}")
    return backend


def open_session(backend: str, directory: Path, *, threads: int | None = None) -> Session:
    """An opened model; `threads` limits the processor threads of one call (None: all cores)."""
    return import_module(SESSIONS[require_backend(backend)]).open_session(directory, threads=threads)
