"""How models are named on the command lines of benchmarks: MODEL, or MODEL@FORMAT."""

from pathlib import Path

from pplx_edge.errors import InputError


def split_format(name: str, format: str | None = None) -> tuple[str, str | None]:
    """Model and format of `MODEL@FORMAT`; the given format where the name has none."""
    model, at, wanted = name.rpartition("@")
    if not at or Path(name).expanduser().is_dir():
        return name, format
    if not model or not wanted:
        raise InputError(f"{name!r}: a model with a format is written MODEL@FORMAT, nano@onnx-fp32 for one")
    return model, wanted


def label_of(name: str) -> str:
    """A built-in or hub name as it is, a directory by its own name."""
    path = Path(name).expanduser()
    return path.resolve().name if path.is_dir() else name
