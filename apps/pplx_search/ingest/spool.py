"""Store answers of a child process, on disk if they are long, and read documents from them on demand."""

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from pplx_search.documents import Document, Piece
from pplx_search.ingest import wire

_IN_MEMORY_BYTES = 1 << 20
_READ_BYTES = 1 << 18


class Spool:
    """An append-only byte buffer that moves to an unnamed temporary file beyond one megabyte."""

    def __init__(self, directory: Path | None):
        self._directory = directory
        self._memory = bytearray()
        self._descriptor = -1
        self._n_written = 0
        self._close = lambda: None

    def __len__(self) -> int:
        return self._n_written + len(self._memory)

    def append(self, data: bytes) -> None:
        self._memory += data
        if len(self._memory) > _IN_MEMORY_BYTES:
            if self._descriptor < 0:
                self._open()
            self.flush()

    def flush(self) -> None:
        """Flush buffered data to the file, if there is one."""
        if self._descriptor < 0:
            return
        view = memoryview(bytes(self._memory))
        while view:
            n_written = os.write(self._descriptor, view)
            self._n_written += n_written
            view = view[n_written:]
        self._memory = bytearray()

    def read(self, start: int, size: int) -> bytes:
        if self._descriptor < 0:
            return bytes(self._memory[start : start + size])
        return os.pread(self._descriptor, size, start)

    def close(self) -> None:
        self._close()
        self._descriptor = -1  # the descriptor may be reused for another file
        self._memory = bytearray()

    def _open(self) -> None:
        self._descriptor, path = tempfile.mkstemp(prefix="pplx-search-", dir=self._directory)
        os.unlink(path)
        self._close = weakref.finalize(self, os.close, self._descriptor)


class SpooledPieces:
    """The pieces of a document in text order. Every iteration reads them again."""

    def __init__(self, spool: Spool, start: int, stop: int):
        self._spool, self._start, self._stop = spool, start, stop

    def __iter__(self) -> Iterator[Piece]:
        for message in _messages(self._spool, self._start, self._stop):
            yield Piece(message["text"], message["page"])


class SpooledDocuments(Sequence[Document]):
    """The documents of a file, each created on access."""

    def __init__(self, spool: Spool):
        self._spool = spool
        self._bounds = array("q")  # per document: offsets of its head, first piece, end message, and end

    def add(self, head: int, pieces: int, end: int, stop: int) -> None:
        self._bounds.extend((head, pieces, end, stop))

    def __len__(self) -> int:
        return len(self._bounds) // 4

    @overload
    def __getitem__(self, index: int) -> Document: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Document]: ...

    def __getitem__(self, index: int | slice) -> Document | Sequence[Document]:
        if isinstance(index, slice):
            return [self._document(i) for i in range(len(self))[index]]
        return self._document(range(len(self))[index])

    def _document(self, index: int) -> Document:
        head_at, pieces_at, end_at, stop = self._bounds[4 * index : 4 * index + 4]
        (head,) = _messages(self._spool, head_at, pieces_at)
        (end,) = _messages(self._spool, end_at, stop)
        return Document(
            kind=head["kind"],
            pieces=SpooledPieces(self._spool, pieces_at, end_at),
            part=head["part"],
            title=end["title"],
            markup=head["text_format"],
            metadata=end["metadata"],
            remarks=tuple(end["remarks"]),
        )


def _messages(spool: Spool, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Yield the messages in a range of a spool."""
    block, at = b"", start  # unconsumed bytes, and the offset to read next
    while block or at < stop:
        needed = wire.HEADER_BYTES
        if len(block) >= needed:
            needed += wire.length_of(block[:needed])
        if len(block) < needed:
            more = spool.read(at, min(stop - at, max(_READ_BYTES, needed)))
            if not more:
                raise ValueError("the text of the file is no longer available, because it was read after it was closed")
            block, at = block + more, at + len(more)
            continue
        yield wire.unpack(block[wire.HEADER_BYTES : needed])
        block = block[needed:]
