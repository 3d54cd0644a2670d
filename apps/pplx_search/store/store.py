"""The index of a person's files: one SQLite file that says everything, and files of bits derived from it."""

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
    """An opened index.

    `collections`, `files` and `vectors` write, and need `write=True`; there is one writer at a time on a machine. What
    they do is a transaction of its own, or part of one that is open: `with store.transaction(): …`. Reading is always
    possible, in other processes too, and each call sees one state. One thread at a time may use a store; `search` and
    `text` wait for each other.
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
        """The index in a directory, which is made when it is opened for writing.

        `kernel` computes searches (see `kernel.KERNELS`), `threads` of them at once for large indexes. `on_step` is
        told each step of writing, `vfs` names a virtual file system of SQLite.

        Raises StoreBusy when another process writes, StoreDamaged for what is not an index or of a newer release,
        InputError when there is none to read.
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
        """Ends the connection and lets the next writer in."""
        with self._guard:
            try:
                self._database.close()
            finally:
                if self._lock is not None:
                    self._lock.release()

    def search(self, query: Query) -> list[Hit]:
        """The best chunks for a query, best first."""
        with self._guard:
            return self._searcher.search(query)

    def evidence(self, query: Query, hits: Sequence[Hit]) -> Evidence:
        """What speaks for the answer to a query being among its hits."""
        with self._guard:
            return self._searcher.evidence(query, hits)

    def spread(self, count: int) -> list[Passage]:
        """So many passages, or all that there are, from everywhere in the index."""
        with self._guard:
            return self._searcher.spread(count)

    def n_chunks(self) -> int:
        """How many chunks a search without a filter looks at."""
        with self._guard:
            return self._searcher.n_chunks()

    def n_pending(self) -> int:
        """How many files were begun, or are known to have changed, and are not finished; cheap, unlike `status`."""
        with self._guard:
            return read_pending(self._database)

    def text(self, hit: Hit, around: int = 0) -> str:
        """The text of a hit, with that many characters before and after it."""
        return self.read(hit.content, hit.start - around, hit.stop + around)

    def read(self, content: int, start: int = 0, stop: int | None = None) -> str:
        """The slice `[start, stop)` of a text. Raises InputError when it is not in the index any more."""
        with self._guard, self._database.reading():
            return self._texts.read(content, start, stop)

    def lines(self, content: int, first: int, count: int) -> str:
        """Lines of a text, counted from 1, with their ends; fewer where it ends."""
        with self._guard, self._database.reading():
            return read_lines(self._database, self._texts, content, first, count)

    def pieces(self, content: int) -> Iterator[Piece]:
        """A whole text, with its pages: what embedding it anew needs. Stay in one thread while this runs."""
        return self._texts.pieces(content)

    def text_format(self, content: int) -> str:
        """How headings are told in a text: `markdown`, `text` or `code`."""
        with self._guard:
            return self._database.value("SELECT text_format FROM contents WHERE id = ?", (content,))

    def document(self, document: int) -> StoredDocument:
        """A document by its number. Raises InputError when it is not in the index any more."""
        with self._guard, self._database.reading():
            return read_document(self._database, self.vectors, document)

    def documents(self, wanted: Filter = EVERYTHING) -> Iterator[StoredDocument]:
        """The documents that a filter lets through, in the order in which they came."""
        return read_documents(self._database, self.vectors, wanted)

    def chunks(self, content: int) -> Iterator[StoredChunk]:
        """The chunks of a text with their vectors in the serving generation, in their order."""
        return read_chunks(self._database, content)

    def status(self) -> Status:
        """Coverage and size."""
        with self._guard, self._database.reading():
            snapshot = self._searcher.snapshot()
            mended = snapshot is not None and snapshot.mended
            return read_status(self._database, self.directory, self.vectors, self._searcher.kernel.name, mended)

    def check(self) -> list[str]:
        """What is wrong with the index, a sentence each; empty when every invariant holds. Reads everything once."""
        with self._guard:
            return check(self._database, self.directory)

    def compact(self) -> Swept:
        """Drops what nothing holds any more, retired generations too, and gives the space back.

        Each step is a transaction of its own: searches go on, and after an interruption the next call goes on.
        """
        with self._guard:
            return sweeping.sweep(self._database, self.directory)
