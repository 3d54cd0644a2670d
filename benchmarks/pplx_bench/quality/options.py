"""Lists and output files on the command line."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pplx_edge.errors import InputError

NATIVE = "native"


def comma_list(text: str) -> list[str]:
    """`a,b` to its parts; an empty text has none."""
    return [part for part in text.split(",") if part]


def one_of(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    """Reads a list of which every part is allowed and there is at least one."""
    names = list(allowed)

    def read(text: str) -> list[str]:
        parts = list(dict.fromkeys(comma_list(text)))
        for part in parts or [text]:
            if part not in names:
                raise argparse.ArgumentTypeError(f"{part!r}: choose among {', '.join(names)}")
        return parts

    return read


def dims(text: str) -> list[int | None]:
    """`native,256,128` to None for native and numbers."""
    found: list[int | None] = []
    for part in comma_list(text) or [text]:
        if part != NATIVE and not (part.isascii() and part.isdigit() and int(part)):
            raise argparse.ArgumentTypeError(f"{part!r}: {NATIVE} or a whole number above 0")
        found.append(None if part == NATIVE else int(part))
    return found


def require_writable(path: Path, suffixes: Sequence[str]) -> None:
    """Raises InputError unless a file of that name can be written; said before anything is measured, not after."""
    if path.suffix not in suffixes:
        raise InputError(f"{path}: the name must end in one of {', '.join(suffixes)}; choose another")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: the directory {path.absolute().parent} does not exist; create it first")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: exists and is not a plain file; choose another name")
