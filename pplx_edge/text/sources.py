"""Where streams of text come from: a string, a path, a file object, or an iterator of strings or of (text, page).

All become short pieces of text in order. None is held: what a piece was cut from is forgotten with it.
"""

import codecs
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from pplx_edge.errors import InputError

Source = str | Path | IO[str] | IO[bytes] | Iterable[str] | Iterable[tuple[str, int | None]]

_PIECE_CHARS = 4096
_BOM = "\ufeff"


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text, and the page it is from when the source knows pages."""

    text: str
    page: int | None = None


def pieces(source: Source) -> Generator[Piece, None, None]:
    """The text of a source in pieces of at most 4,096 characters, read no faster than they are taken.

    A `str` is the text itself, a `Path` a UTF-8 file. Bytes are decoded strictly and lose a byte order mark; nothing
    else is changed, line ends neither. Whatever the source raises comes after all pieces before it.

    Raises InputError for anything else, for bytes that are not UTF-8 and for a lone surrogate, naming where it stands.
    """
    n_chars = 0
    for piece in _raw(source):
        valid = _valid_length(piece.text)
        for start in range(0, valid, _PIECE_CHARS):
            yield Piece(piece.text[start : min(valid, start + _PIECE_CHARS)], piece.page)
        if valid < len(piece.text):
            raise InputError(
                f"lone surrogate at character {n_chars + valid:,} of the stream, which is not Unicode text; "
                "decode its source with errors='replace'"
            )
        n_chars += valid


def _raw(source: Any) -> Iterator[Piece]:
    if isinstance(source, str):
        return iter([Piece(source)])
    if isinstance(source, Path):
        return _from_path(source)
    if hasattr(source, "read"):
        return _from_file(source)
    if isinstance(source, Iterable) and not isinstance(source, bytes | bytearray | memoryview):
        return _from_iterator(iter(source))
    raise InputError(
        f"a stream is read from a string, a path, a file or an iterator of strings, not from {type(source).__name__}"
    )


def _from_path(path: Path) -> Iterator[Piece]:
    with open(path, "rb") as file:
        yield from _from_file(file)


def _from_file(file: Any) -> Iterator[Piece]:
    """Pieces of a file object of text or bytes, which stays open."""
    block = file.read(_PIECE_CHARS)
    if isinstance(block, str):
        while block:
            yield Piece(block)
            block = file.read(_PIECE_CHARS)
    else:
        yield from _decoded(file, block)


def _decoded(file: BinaryIO, block: bytes) -> Iterator[Piece]:
    """Pieces of UTF-8, whose characters may lie across the borders of what is read."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    n_bytes, at_start = 0, True
    while True:
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            if good := error.object[: error.start].decode("utf-8"):
                yield Piece(good.removeprefix(_BOM) if at_start else good)
            raise InputError(
                f"{getattr(file, 'name', 'the stream')}: not UTF-8: byte 0x{error.object[error.start]:02x} at byte "
                f"{n_bytes - pending + error.start:,}; convert it first (iconv)"
            ) from None
        if text:
            yield Piece(text.removeprefix(_BOM) if at_start else text)
            at_start = False
        if not block:
            return
        n_bytes += len(block)
        block = file.read(_PIECE_CHARS)


def _from_iterator(items: Iterator[Any]) -> Iterator[Piece]:
    for i, item in enumerate(items):
        text, page = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        if not isinstance(text, str) or isinstance(page, bool) or not isinstance(page, int | None):
            raise InputError(f"item {i} of the stream must be a string or (string, page number), got {_kinds(item)}")
        yield Piece(text, page)


def _kinds(item: Any) -> str:
    if isinstance(item, tuple):
        return f"({', '.join(type(part).__name__ for part in item)})"
    return type(item).__name__


def _valid_length(text: str) -> int:
    """How many characters stand before the first lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return len(text)
