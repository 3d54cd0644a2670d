"""The index: one SQLite file that contains everything, and bits files derived from it."""

import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from pplx_search.documents import Piece
from pplx_search.store import sweeping
from pplx_search.store.checking import check
from pplx_search.store.database import DATABASE_FILE, Database, Step
from pplx_search.store.errors import translated
from pplx_search.store.files import Files
from pplx_search.store.kernel import Kernel, open_kernel
from pplx_search.store.locking import WriterLock
from pplx_search.store.roots import Collections
from pplx_search.store.searching import Searcher
from pplx_search.store.status import read_chunks, read_document, read_documents, read_lines, read_pending, read_status
from pplx_search.store.sweeping import Swept
from pplx_search.store.texts import Texts
from pplx_search.store.values import (
    EVERYTHING,
    Evidence,
    Filter,
    Hit,
    Passage,
    Query,
    Status,
    StoredChunk,
    StoredDocument,
)
from pplx_search.store.vectors import Vectors

_MAX_THREADS = 4


class Store:
    """An open index.

    `collections`, `files` and `vectors` modify the index and require `write=True`; only one process can write at a
    time. Each of their calls is a transaction, unless it is inside an open one: `with store.transaction(): …`. Reading
    is always possible, also from other processes, and each call sees a consistent state. A store must be used by one
    thread at a time; calls such as `search` and `text` take a lock.
    """

    def __init__(self, directory: Path, database: Database, lock: WriterLock | None, kernel: Kernel, threads: int):
        self.directory = directory
        self._database, self._lock = database, lock
        self._guard = threading.RLock()
        self._texts = Texts(database)
        self.collections = Collections(database)
        self.vectors = Vectors(database, directory, self._texts)
        self.files = Files(database, self._texts)
        self._searcher = Searcher(database, directory, self.vectors, kernel, threads)
        self.transaction = database.transaction

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        write: bool = False,
        kernel: str | None = None,
        threads: int | None = None,
        on_step: Step = lambda step: None,
        vfs: str | None = None,
    ) -> "Store":
        """Open the index in a directory, creating it if `write` is True.

        `kernel` selects the search kernel (see `kernel.KERNELS`), and `threads` how many threads scan a large index.
        `on_step` is called with the name of each write step, and `vfs` names an SQLite virtual file system.

        Raises StoreBusy if another process is writing, StoreDamaged if the file is not an index or comes from a newer
        release, and InputError if there is no index to read.
        """
        directory = Path(directory)
        path = directory / DATABASE_FILE
        opened_kernel = open_kernel(kernel)
        lock = None
        if write:
            with translated(directory):
                directory.mkdir(parents=True, exist_ok=True)
                lock = WriterLock(directory)
        try:
            database = Database(path, write=write, on_step=on_step, vfs=vfs)
            try:
                store = cls(directory, database, lock, opened_kernel, threads or min(_MAX_THREADS, os.cpu_count() or 1))
                if write:
                    sweeping.mend(database, directory)
                    sweeping.tidy(database, directory)
            except BaseException:
                database.close()
                raise
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        return store

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and release the writer lock."""
        with self._guard:
            try:
                self._database.close()
            finally:
                if self._lock is not None:
                    self._lock.release()

    def search(self, query: Query) -> list[Hit]:
        """Return the best chunks for a query, best first."""
        with self._guard:
            return self._searcher.search(query)

    def evidence(self, query: Query, hits: Sequence[Hit]) -> Evidence:
        """Return the evidence that the answer to a query is among its hits."""
        with self._guard:
            return self._searcher.evidence(query, hits)

    def spread(self, count: int) -> list[Passage]:
        """Return `count` passages, or all if there are fewer, spread evenly over the index."""
        with self._guard:
            return self._searcher.spread(count)

    def n_chunks(self) -> int:
        """Return the number of chunks that an unfiltered search covers."""
        with self._guard:
            return self._searcher.n_chunks()

    def n_pending(self) -> int:
        """Return the number of files that are known to be new or changed but not indexed yet. Cheaper than `status`."""
        with self._guard:
            return read_pending(self._database)

    def text(self, hit: Hit, around: int = 0) -> str:
        """Return the text of a hit, with `around` characters of context on each side."""
        return self.read(hit.content, hit.start - around, hit.stop + around)

    def read(self, content: int, start: int = 0, stop: int | None = None) -> str:
        """Return the slice `[start, stop)` of a text. Raises InputError if it is no longer in the index."""
        with self._guard, self._database.reading():
            return self._texts.read(content, start, stop)

    def lines(self, content: int, first: int, count: int) -> str:
        """Return up to `count` lines of a text from line `first` (1-based) on, including line endings."""
        with self._guard, self._database.reading():
            return read_lines(self._database, self._texts, content, first, count)

    def pieces(self, content: int) -> Iterator[Piece]:
        """Yield a whole text with its pages, as needed to embed it again. Iterate in a single thread."""
        return self._texts.pieces(content)

    def text_format(self, content: int) -> str:
        """Return the markup of a text, which determines its headings: `markdown`, `text` or `code`."""
        with self._guard:
            return self._database.value("SELECT text_format FROM contents WHERE id = ?", (content,))

    def document(self, document: int) -> StoredDocument:
        """Return a document by id. Raises InputError if it is no longer in the index."""
        with self._guard, self._database.reading():
            return read_document(self._database, self.vectors, document)

    def documents(self, wanted: Filter = EVERYTHING) -> Iterator[StoredDocument]:
        """Yield the documents that match a filter, in the order they were added."""
        return read_documents(self._database, self.vectors, wanted)

    def chunks(self, content: int) -> Iterator[StoredChunk]:
        """Yield the chunks of a text with their vectors in the serving generation, in order."""
        return read_chunks(self._database, content)

    def status(self) -> Status:
        """Return how much is indexed, and the size of the index."""
        with self._guard, self._database.reading():
            snapshot = self._searcher.snapshot()
            mended = snapshot is not None and snapshot.mended
            return read_status(self._database, self.directory, self.vectors, self._searcher.kernel.name, mended)

    def check(self) -> list[str]:
        """Check every invariant of the index and return the violations as messages. Reads the whole index once."""
        with self._guard:
            return check(self._database, self.directory)

    def compact(self) -> Swept:
        """Delete unreferenced texts and retired generations, and return the space to the file system.

        Each step is its own transaction: searches continue meanwhile, and an interrupted call is continued by the next.
        """
        with self._guard:
            return sweeping.sweep(self._database, self.directory)
