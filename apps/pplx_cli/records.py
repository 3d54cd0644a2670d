"""Texts and documents from files and stdin, line by line; each knows where it came from."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from pplx_edge.errors import InputError

STDIN = "-"
_MAX_LINE_BYTES = 1 << 26
_BOM = b"\xef\xbb\xbf"
_BLOCK_RECORDS = 1024
_BLOCK_CHARS = 1 << 21


def add_line_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a line is."""
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="Read each line as a JSON string, or as an object whose text is in --field.",
    )
    parser.add_argument("--field", default="text", metavar="NAME", help="Field of the object that holds the text.")


@dataclass(frozen=True, slots=True)
class Record:
    """A text, or a document as a list of chunks, and its `file:line`."""

    content: Any
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineFormat:
    """What a line is: a text as it stands, or JSON: a text or (`contextual`) a list of chunks, bare or in a field."""

    jsonl: bool = False
    contextual: bool = False
    field: str = "text"

    def content(self, line: str, where: str) -> str | list[str]:
        """What a line holds. Raises InputError naming the place."""
        if not self.jsonl and not self.contextual:
            return line
        value = _parsed(line, where)
        if isinstance(value, dict):
            if self.field not in value:
                known = ", ".join(map(str, value)) or "nothing"
                raise InputError(
                    f"{where}: no field {self.field!r} in this object, it has {known}; choose with --field"
                )
            value = value[self.field]
        self._require_kind(value, where)
        return value

    def _require_kind(self, value: Any, where: str) -> None:
        wanted = "a list of strings" if self.contextual else "a string"
        texts = value if self.contextual and isinstance(value, list) else [value]
        if self.contextual != isinstance(value, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{where}: {wanted} is needed, found {type(value).__name__}")
        for text in texts:
            if any("\ud800" <= char <= "\udfff" for char in text):
                raise InputError(f"{where}: an escaped lone surrogate, which is not Unicode text")


def read_records(paths: Sequence[str], line_format: LineFormat) -> Iterator[Record]:
    """One record a line of all files in turn. Raises InputError naming file and line, OSError for the file."""
    for path in paths:
        with _opened(path) as (file, name):
            for number, line in enumerate(_lines(file, name), 1):
                where = f"{name}:{number}"
                yield Record(line_format.content(_decoded(line, where), where), where)


def blocks(records: Iterator[Record]) -> Iterator[list[Record]]:
    """The records in lists that are small enough to hold and large enough to batch well."""
    block, n_chars = [], 0
    for record in records:
        block.append(record)
        n_chars += sum(len(piece) for piece in record.content)  # characters of a text, chunks of a document
        if len(block) == _BLOCK_RECORDS or n_chars >= _BLOCK_CHARS:
            yield block
            block, n_chars = [], 0
    if block:
        yield block


@contextmanager
def _opened(path: str) -> Iterator[tuple[BinaryIO, str]]:
    if path == STDIN:
        yield sys.stdin.buffer, "stdin"
    else:
        with open(path, "rb") as file:
            yield file, path


def _lines(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Lines without their end, and without the byte order mark of the first."""
    number = 0
    while line := file.readline(_MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > _MAX_LINE_BYTES:
            raise InputError(
                f"{name}:{number}: a line of more than {_MAX_LINE_BYTES:,} bytes; one text a line is expected"
            )
        if number == 1:
            line = line.removeprefix(_BOM)
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8: byte 0x{line[error.start]:02x} at position {error.start}; convert it first (iconv)"
        ) from None


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}; each line is one JSON value") from None
    except RecursionError:
        raise InputError(f"{where}: not JSON that can be read: nested too deeply") from None
