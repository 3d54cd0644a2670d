"""Types of options that several benchmarks share, for argparse, and checks of output files."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from pplx_bench.workdir import default_work
from pplx_edge.errors import InputError
from pplx_kit.host import n_cores
from pplx_kit.options import positive

T = TypeVar("T")


def comma_list(text: str) -> list[str]:
    """Return the parts of `a,b`; an empty string has none."""
    return [part for part in text.split(",") if part]


def list_of(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Return a parser of one or more comma-separated values, which drops duplicates."""
    return lambda text: list(dict.fromkeys(map(parse, comma_list(text) or [text])))


def one_of(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a parser of one or more comma-separated names, each of which must be allowed."""
    names = list(allowed)

    def parse(name: str) -> str:
        if name not in names:
            raise argparse.ArgumentTypeError(f"{name!r}: choose among {', '.join(names)}")
        return name

    return list_of(parse)


def require_writable(path: Path | None, *suffixes: str) -> None:
    """Raise InputError unless the file can be written; called before anything is measured. None is no file."""
    if path is None:
        return
    if path.suffix not in suffixes:
        raise InputError(f"{path}: the name must end in one of {', '.join(suffixes)}; choose another")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: the directory {path.absolute().parent} does not exist; create it first")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: exists and is not a plain file; choose another name")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add `--threads`, `--work` and `--json`, which every measurement of speed and memory has."""
    parser.add_argument(
        "--threads",
        type=positive,
        default=n_cores(),
        metavar="N",
        help="CPU threads of each process (default: all cores).",
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=default_work(),
        metavar="DIR",
        help="Keep the random weights, and what is made of them for each runtime, in this folder for the next run; "
        "many GB (default: the folder bench of the cache).",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="Append the results to this .jsonl file.")
