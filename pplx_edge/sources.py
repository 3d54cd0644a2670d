"""Where a streamed document comes from: a text, a file, or an iterator, as pieces of bounded size.

The document is what the pieces say one after the other; nothing is added between them and nothing is taken away but
the byte order mark of a file.
"""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from pplx_edge.errors import InputError

Source = str | Path | IO[str] | IO[bytes] | Iterable[str] | Iterable[tuple[str, int]]

PIECE_CHARS = 1 << 14


def pieces(source: Source) -> Iterator[tuple[str, int | None]]:
    """Pieces `(text, page)` of a source, in order; `page` is None where the source does not say.

    A str is the document itself; files are named by a Path. Files are read as UTF-8. A file that was opened here is
    closed at the end, or when the iterator is; one that was passed in stays open.

    Raises InputError for another kind of source, for bytes that are not UTF-8 and for lone surrogates, which it names
    by their place; everything before that place has been yielded. What a source raises itself goes through.
    """
    place = 0
    for text, page in _cut(_raw_pieces(source)):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            if error.start:
                yield text[: error.start], page
            raise InputError(
                f"a lone surrogate at character {place + error.start:,}, which is not Unicode text; "
                "decode the source with errors='replace'"
            ) from None
        yield text, page
        place += len(text)


def _raw_pieces(source: Any) -> Iterator[tuple[str, int | None]]:
    if isinstance(source, str):
        yield source, None
    elif isinstance(source, Path):
        with source.open("rb") as file:
            yield from _file_pieces(file, str(source))
    elif hasattr(source, "read"):
        yield from _file_pieces(source, str(getattr(source, "name", "file")))
    elif isinstance(source, bytes | bytearray) or not hasattr(source, "__iter__"):
        raise InputError(
            f"a source must be a str, a Path, a file or an iterator of texts, got {type(source).__name__}; "
            "decode bytes first"
        )
    else:
        for number, piece in enumerate(source):
            yield _piece(piece, number)


def _piece(piece: Any, number: int) -> tuple[str, int | None]:
    if isinstance(piece, str):
        return piece, None
    if isinstance(piece, tuple) and len(piece) == 2:
        text, page = piece
        if isinstance(text, str) and (page is None or isinstance(page, int)):
            return text, page
    raise InputError(f"piece {number} of the source must be a str or (str, page number), got {type(piece).__name__}")


def _file_pieces(file: Any, name: str) -> Iterator[tuple[str, None]]:
    """Texts of an opened file, text or binary."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    n_bytes = 0
    while block := file.read(PIECE_CHARS):
        yield (block if isinstance(block, str) else _decoded(decoder, block, name, n_bytes)), None
        n_bytes += len(block)
    _decoded(decoder, b"", name, n_bytes, final=True)


def _decoded(decoder: Any, block: bytes, name: str, n_bytes: int, final: bool = False) -> str:
    pending = len(decoder.getstate()[0])
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        place = n_bytes - pending + error.start
        raise InputError(
            f"{name}: not UTF-8: byte 0x{error.object[error.start]:02x} at byte {place:,}; convert it first (iconv)"
        ) from None


def _cut(texts: Iterable[tuple[str, int | None]]) -> Iterator[tuple[str, int | None]]:
    for text, page in texts:
        for start in range(0, len(text), PIECE_CHARS):
            yield text[start : start + PIECE_CHARS], page
