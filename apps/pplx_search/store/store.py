"""The index: one SQLite file that contains everything, and bits files derived from it."""

import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from pplx_search.documents import Piece
from pplx_search.ids import DocumentId, TextId
from pplx_search.query.bm25 import rarity
from pplx_search.query.evidence import evidence_of
from pplx_search.query.fusion import Legs
from pplx_search.query.kernels import open_kernel
from pplx_search.query.ranking import legs_of, rank
from pplx_search.query.scanner import Scanner
from pplx_search.query.types import EVERYTHING, Answer, Evidence, Filter, Hit, Query
from pplx_search.store import compaction, integrity
from pplx_search.store.database import DATABASE_FILE, Database, Step
from pplx_search.store.errors import translated
from pplx_search.store.files import Files
from pplx_search.store.hits import read_hits
from pplx_search.store.listing import read_chunks, read_document, read_documents, read_lines, read_passage
from pplx_search.store.roots import Collections
from pplx_search.store.snapshot import GenerationSnapshot, load_snapshot
from pplx_search.store.status import read_pending, read_status
from pplx_search.store.texts import Texts
from pplx_search.store.values import Compaction, Passage, Status, StoredChunk, StoredDocument
from pplx_search.store.vectors import Vectors
from pplx_search.store.writer_lock import WriterLock

_MAX_THREADS = 4
_NO_EVIDENCE = Evidence(cosine_z=None, bm25_share=0.0, exact=False)


class Store:
    """An open index.

    `collections`, `files` and `vectors` modify the index and require `write=True`; only one process can write at a
    time. Each of their calls is a transaction, unless it is inside an open one: `with store.transaction(): …`. Reading
    is always possible, also from other processes, and each call reads one consistent state. A store must be used by one
    thread at a time; calls such as `search` and `text` take a lock.
    """

    def __init__(self, directory: Path, database: Database, lock: WriterLock | None, scanner: Scanner):
        self.directory = directory
        self._database, self._lock = database, lock
        self._guard = threading.RLock()
        self._texts = Texts(database)
        self.collections = Collections(database)
        self.vectors = Vectors(database, directory, self._texts)
        self.files = Files(database, self._texts)
        self._scanner = scanner
        self._cached_snapshot: GenerationSnapshot | None = None
        self._cached_state: tuple[int, int, int] | None = None
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

        `kernel` selects the search kernel (see `kernels.KERNELS`), and `threads` how many threads scan a large index.
        `on_step` is called with the name of each write step, and `vfs` names an SQLite virtual file system.

        Raises StoreBusy if another process is writing, StoreDamaged if the file is not an index or comes from a newer
        release, and InputError if there is no index to read.
        """
        directory = Path(directory)
        path = directory / DATABASE_FILE
        scanner = Scanner(open_kernel(kernel), threads or min(_MAX_THREADS, os.cpu_count() or 1))
        lock = None
        if write:
            with translated(directory):
                directory.mkdir(parents=True, exist_ok=True)
                lock = WriterLock(directory)
        try:
            database = Database(path, write=write, on_step=on_step, vfs=vfs)
            try:
                store = cls(directory, database, lock, scanner)
                if write:
                    compaction.repair_bits(database, directory)
                    compaction.remove_old_bits(database, directory)
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

    def answer(self, query: Query) -> Answer:
        """Return the best chunks for a query, best first, with their texts and the evidence that they answer it.

        Raises InputError if the query vector has the wrong dimension.
        """
        with self._guard, self._database.reading():
            snapshot = self._snapshot()
            if snapshot is None:
                return Answer(hits=[], texts=[], evidence=_NO_EVIDENCE, model=None, null_baseline=None)
            ranked = rank(query, snapshot, self._scanner)
            hits = read_hits(self._database, ranked, query.filter)
            return Answer(
                hits=hits,
                texts=[self._texts.read(hit.text_id, hit.start, hit.stop) for hit in hits],
                evidence=evidence_of(query, ranked, snapshot, self._scanner.kernel),
                model=snapshot.generation.settings.get("model"),
                null_baseline=self.vectors.null_baseline(snapshot.generation),
            )

    def rarity(self, words: Iterable[str]) -> dict[str, float]:
        """Return the rarity, from 0 to 1, of each word that a chunk contains. Words consist of letters and digits."""
        with self._guard, self._database.reading():
            snapshot = self._snapshot()
            if snapshot is None:
                return {}
            terms = {word: f'"{word}"' for word in words}
            return {word: rarity(term, snapshot) for word, term in terms.items() if snapshot.n_chunks_with(term, 1)}

    def search(self, query: Query) -> list[Hit]:
        """Return only the hits of an answer, which is faster."""
        with self._guard, self._database.reading():
            snapshot = self._snapshot()
            if snapshot is None:
                return []
            return read_hits(self._database, rank(query, snapshot, self._scanner), query.filter)

    def legs(self, query: Query) -> Legs:
        """Return what each leg of a search finds, before they are combined."""
        with self._guard, self._database.reading():
            snapshot = self._snapshot()
            return Legs() if snapshot is None else legs_of(query, snapshot, self._scanner)

    def evidence_elsewhere(self, query: Query, text_id: TextId) -> Evidence | None:
        """Return the evidence among the best chunks that are not part of a text, or None if all of them are."""
        with self._guard, self._database.reading():
            snapshot = self._snapshot()
            if snapshot is None:
                return None
            ranked = rank(query, snapshot, self._scanner)
            of_other_texts = snapshot.text_ids_of(np.array([chunk.chunk_id for chunk in ranked], np.int64)) != text_id
            others = [chunk for chunk, is_other in zip(ranked, of_other_texts, strict=True) if is_other]
            return evidence_of(query, others, snapshot, self._scanner.kernel) if others else None

    def sample_passages(self, count: int) -> list[Passage]:
        """Return `count` evenly spaced passages of the index, or all if there are fewer."""
        with self._guard, self._database.reading():
            snapshot = self._snapshot()
            chunk_ids = [] if snapshot is None else snapshot.sample(count).tolist()
            return [read_passage(self._database, self._texts, chunk_id) for chunk_id in chunk_ids]

    def n_chunks(self) -> int:
        """Return the number of chunks that an unfiltered search covers."""
        with self._guard, self._database.reading():
            snapshot = self._snapshot()
            return 0 if snapshot is None else snapshot.n_chunks

    def n_pending(self) -> int:
        """Return the number of files that are known to be new or changed but not indexed yet. Cheaper than `status`."""
        with self._guard:
            return read_pending(self._database)

    def text(self, hit: Hit, around: int = 0) -> str:
        """Return the text of a hit, with `around` characters of context on each side."""
        return self.read(hit.text_id, hit.start - around, hit.stop + around)

    def read(self, text_id: TextId, start: int = 0, stop: int | None = None) -> str:
        """Return the slice `[start, stop)` of a text. Raises InputError if it is no longer in the index."""
        with self._guard, self._database.reading():
            return self._texts.read(text_id, start, stop)

    def lines(self, text_id: TextId, first: int, count: int) -> str:
        """Return up to `count` lines of a text from line `first` (1-based) on, including line endings."""
        with self._guard, self._database.reading():
            return read_lines(self._database, self._texts, text_id, first, count)

    def pieces(self, text_id: TextId) -> Iterator[Piece]:
        """Yield a whole text in pieces, each on a single page. Iterate in a single thread."""
        return self._texts.pieces(text_id)

    def markup(self, text_id: TextId) -> str:
        """Return the markup of a text, which determines its headings: `markdown`, `text` or `code`."""
        with self._guard:
            return self._database.value("SELECT text_format FROM contents WHERE id = ?", (text_id,))

    def document(self, document_id: DocumentId) -> StoredDocument:
        """Return a document by id. Raises InputError if it is no longer in the index."""
        with self._guard, self._database.reading():
            return read_document(self._database, self.vectors, document_id)

    def documents(self, wanted: Filter = EVERYTHING) -> Iterator[StoredDocument]:
        """Yield the documents that match a filter, in the order they were added."""
        return read_documents(self._database, self.vectors, wanted)

    def chunks(self, text_id: TextId) -> Iterator[StoredChunk]:
        """Yield the chunks of a text with their vectors in the serving generation, in order."""
        return read_chunks(self._database, text_id)

    def status(self) -> Status:
        """Return how much is indexed, and the size of the index."""
        with self._guard, self._database.reading():
            snapshot = self._snapshot()
            rebuilt = snapshot is not None and snapshot.rebuilt
            return read_status(self._database, self.directory, self.vectors, self._scanner.kernel.name, rebuilt)

    def check(self) -> list[str]:
        """Check every invariant of the index and return the violations as messages. Reads the whole index once."""
        with self._guard:
            return integrity.problems(self._database, self.directory)

    def compact(self) -> Compaction:
        """Delete unreferenced texts and retired generations, and return the space to the file system.

        Each step is its own transaction: searches continue meanwhile, and an interrupted call is continued by the next.
        """
        with self._guard:
            return compaction.compact(self._database, self.directory)

    def _snapshot(self) -> GenerationSnapshot | None:
        """Return the state of the serving generation in this transaction, or None in an index without vectors."""
        state = self._database.state
        if state != self._cached_state:
            generation, before = self.vectors.serving, self._cached_snapshot
            self._cached_snapshot = generation and load_snapshot(self._database, generation, self.directory, before)
            self._cached_state = state
        return self._cached_snapshot
