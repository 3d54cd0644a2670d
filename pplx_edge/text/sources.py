"""Read streams of text from a string, a path, a file object, or an iterator of strings or of `(text, page)` tuples.

Every source is split into short pieces of text, in order. Files and iterators are read piece by piece.
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
    """A piece of text, and its page number if the source provides one."""

    text: str
    page: int | None = None


def pieces(source: Source) -> Generator[Piece, None, None]:
    """Yield the text of a source in pieces of at most 4,096 characters, reading only as pieces are consumed.

    A `str` is the text itself; a `Path` names a UTF-8 file. Bytes are decoded strictly as UTF-8, and a leading byte
    order mark is removed; line endings are not changed. An exception raised by the source propagates after all pieces
    before it.

    Raises InputError for an unsupported source, and for invalid UTF-8 or a lone surrogate, giving its offset.
    """
    n_chars = 0
    for piece in _raw(source):
        valid = _valid_length(piece.text)
        for start in range(0, valid, _PIECE_CHARS):
            yield Piece(piece.text[start : min(valid, start + _PIECE_CHARS)], piece.page)
        if valid < len(piece.text):
            raise InputError(
                f"lone surrogate at character {n_chars + valid:,} of the stream, which is not valid Unicode; "
                "decode the source with errors='replace'"
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
        f"a stream must be a string, a path, a file or an iterator of strings, got {type(source).__name__}"
    )


def _from_path(path: Path) -> Iterator[Piece]:
    with open(path, "rb") as file:
        yield from _from_file(file)


def _from_file(file: Any) -> Iterator[Piece]:
    """Yield pieces of a text or binary file object, without closing it."""
    block = file.read(_PIECE_CHARS)
    if isinstance(block, str):
        while block:
            yield Piece(block)
            block = file.read(_PIECE_CHARS)
    else:
        yield from _decoded(file, block)


def _decoded(file: BinaryIO, block: bytes) -> Iterator[Piece]:
    """Yield pieces decoded from UTF-8; a character may be split between two reads."""
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
                f"{getattr(file, 'name', 'the stream')}: not UTF-8: byte 0x{error.object[error.start]:02x} at offset "
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
    """Return the number of characters before the first lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return len(text)
