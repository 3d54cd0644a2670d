"""Texts, compressed in blocks of equal length, so that a passage can be read without the rest of its text."""

import bz2
import json
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from pplx_edge.errors import InputError
from pplx_search.documents import Piece
from pplx_search.ids import TextId
from pplx_search.store.database import Database

BLOCK_CHARS = 65_536
_CACHED_BLOCKS = 32
_LEVEL = 6
_LONG_BYTES = 4096  # from this length on, bz2 can compress prose better than zlib
_BZ2 = b"BZh"
_UTF8 = ("utf-8", "surrogatepass")  # preserves lone surrogates


class Texts:
    """The texts of an index, with a cache of recently read blocks."""

    def __init__(self, database: Database):
        self._database = database
        self._cache: OrderedDict[tuple[TextId, int], str] = OrderedDict()
        self._n_rollbacks = database.n_rollbacks

    def add(self, digest: bytes, markup: str, pieces: Iterable[Piece]) -> TextId:
        """Store a text, block by block, and return its id."""
        text_id = TextId(
            self._database.insert(
                "INSERT INTO contents(digest, text_format, n_chars) VALUES (?, ?, 0)", (digest, markup)
            )
        )
        pages: list[tuple[int, int | None]] = []
        n_chars = 0
        for number, block in enumerate(_blocks(_counted(pieces, pages))):
            values = (text_id, number, packed(block))
            self._database.run("INSERT INTO blocks(content, number, data) VALUES (?, ?, ?)", values)
            n_chars += len(block)
        page_blob = packed(json.dumps(pages)) if pages and pages != [(0, None)] else None
        self._database.run("UPDATE contents SET n_chars = ?, pages = ? WHERE id = ?", (n_chars, page_blob, text_id))
        return text_id

    def read(self, text_id: TextId, start: int = 0, stop: int | None = None) -> str:
        """Return the slice `[start, stop)` of a text, clipped to its length. Raises InputError if it does not exist."""
        n_chars = self._database.value("SELECT n_chars FROM contents WHERE id = ?", (text_id,))
        if n_chars is None:
            raise _missing(text_id)
        begin, end = max(0, start), n_chars if stop is None else min(stop, n_chars)
        if end <= begin:
            return ""
        first, last = begin // BLOCK_CHARS, (end - 1) // BLOCK_CHARS
        text = "".join(self._block(text_id, number) for number in range(first, last + 1))
        return text[begin - first * BLOCK_CHARS : end - first * BLOCK_CHARS]

    def pieces(self, text_id: TextId) -> Iterator[Piece]:
        """Yield a whole text in pieces, each on a single page. Raises InputError if it does not exist."""
        row = self._database.row("SELECT n_chars, pages FROM contents WHERE id = ?", (text_id,))
        if row is None:
            raise _missing(text_id)
        n_chars, page_blob = row
        pages = json.loads(unpacked(page_blob)) if page_blob else [(0, None)]
        edges = [*(start for start, _ in pages), n_chars]
        for (start, page), stop in zip(pages, edges[1:], strict=True):
            for position in range(start, stop, BLOCK_CHARS):
                yield Piece(self.read(text_id, position, min(stop, position + BLOCK_CHARS)), page)

    def _block(self, text_id: TextId, number: int) -> str:
        if self._n_rollbacks != self._database.n_rollbacks:  # ids from a rolled-back transaction are reused
            self._cache.clear()
            self._n_rollbacks = self._database.n_rollbacks
        key = (text_id, number)
        if key not in self._cache:
            data = self._database.value("SELECT data FROM blocks WHERE content = ? AND number = ?", key)
            self._cache[key] = unpacked(data)
            while len(self._cache) > _CACHED_BLOCKS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


def _missing(text_id: TextId) -> InputError:
    return InputError(f"text {text_id} is no longer in the index; search again")


def packed(text: str) -> bytes:
    """Return a text compressed with zlib or bz2, whichever is shorter; the first bytes identify the format."""
    data = text.encode(*_UTF8)
    found = zlib.compress(data, _LEVEL)
    return min(found, bz2.compress(data), key=len) if len(data) >= _LONG_BYTES else found


def unpacked(data: bytes) -> str:
    """Return the uncompressed text. Raises zlib.error, OSError or ValueError if the data is invalid."""
    return (bz2 if data.startswith(_BZ2) else zlib).decompress(data).decode(*_UTF8)


def _counted(pieces: Iterable[Piece], pages: list[tuple[int, int | None]]) -> Iterator[str]:
    """Yield the texts of pieces, and record in `pages` where each page starts."""
    position = 0
    for piece in pieces:
        if piece.text and (not pages or pages[-1][1] != piece.page):
            pages.append((position, piece.page))
        position += len(piece.text)
        yield piece.text


def _blocks(texts: Iterable[str]) -> Iterator[str]:
    """Yield the joined texts in blocks of `BLOCK_CHARS` characters; the last one may be shorter."""
    waiting: list[str] = []
    n_chars = 0
    for text in texts:
        while n_chars + len(text) >= BLOCK_CHARS:
            room = BLOCK_CHARS - n_chars
            yield "".join([*waiting, text[:room]])
            waiting, n_chars, text = [], 0, text[room:]
        waiting.append(text)
        n_chars += len(text)
    if n_chars:
        yield "".join(waiting)
