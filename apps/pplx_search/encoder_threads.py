"""Background threads that embed texts of the store, so that the model never waits for the writer or for input text.

There are two threads: while the model computes for one, the other chunks and tokenizes. They read the store through
their own connections and never write.
"""

import contextlib
import copy
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pplx_edge import ChunkVector, Embedder, StreamOptions
from pplx_edge.errors import InputError
from pplx_edge.types import Session, SessionWrapper, TokenBatch
from pplx_search.ids import EmbeddingId
from pplx_search.store import EmbeddingProgress, Store

_THREADS = 2
_VECTORS_AHEAD = 64  # small, because they are lost if the process is killed
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Texts of one format to embed from the start, or a single text to resume if it already has chunks."""

    options: StreamOptions
    started: Sequence[EmbeddingProgress]


@dataclass(frozen=True, slots=True)
class VectorReady:
    """The next vector of a text is ready."""

    embedding_id: EmbeddingId
    vector: ChunkVector


@dataclass(frozen=True, slots=True)
class TextCompleted:
    """All vectors of a text are done."""

    embedding_id: EmbeddingId


@dataclass(frozen=True, slots=True)
class TextRestarted:
    """A text is embedded from the start again, because its resume position was not usable."""

    embedding_id: EmbeddingId


@dataclass(frozen=True, slots=True)
class WorkEnded:
    """A work has ended, successfully or with an error."""

    work: Work
    error: Exception | None


Message = VectorReady | TextCompleted | TextRestarted | WorkEnded


class EncodingAhead:
    """Accepts works and returns messages; those of one text are in order. `close` stops the threads."""

    def __init__(self, store: Store, model: Embedder):
        self._works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._messages: queue.Queue[Message] = queue.Queue(_VECTORS_AHEAD)
        self._closed = threading.Event()
        taking_turns = copy.copy(model)
        taking_turns.session = _InTurns(model.session)
        readers = [Store.open(store.directory) for _ in range(_THREADS)]
        self._threads = [
            threading.Thread(target=self._run, args=(taking_turns, each), name="pplx-search-encoding", daemon=True)
            for each in readers
        ]
        for thread in self._threads:
            thread.start()

    def put(self, work: Work) -> None:
        """Submit committed texts for embedding."""
        self._works.put(work)

    def get(self, timeout: float) -> Message | None:
        """Return the next message, or None after `timeout` seconds without one."""
        try:
            return self._messages.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> Iterator[Message]:
        """Stop the threads after their current batch, and yield the remaining messages."""
        self._closed.set()
        for _ in self._threads:
            self._works.put(None)
        for thread in self._threads:
            thread.join()
        while not self._messages.empty():
            yield self._messages.get()

    def _run(self, model: Embedder, reader: Store) -> None:
        with reader:
            while not self._closed.is_set() and (work := self._works.get()) is not None:
                error = None
                try:
                    with contextlib.closing(_messages(work, model, reader)) as messages:
                        for message in messages:
                            if not self._put(message):
                                return
                except Exception as failure:
                    error = failure
                self._put(WorkEnded(work, error))

    def _put(self, message: Message) -> bool:
        """Put a message into the queue. Returns False if it was closed."""
        while not self._closed.is_set():
            try:
                self._messages.put(message, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False


class _InTurns(SessionWrapper):
    """A session with a lock, so that only one thread computes at a time."""

    def __init__(self, session: Session):
        super().__init__(session)
        self._lock = threading.Lock()

    def compute(self, run: Callable[[TokenBatch], np.ndarray], batch: TokenBatch) -> np.ndarray:
        with self._lock:
            return run(batch)


def _messages(work: Work, model: Embedder, reader: Store) -> Generator[Message, None, None]:
    if work.started[0].n_chunks:
        (progress,) = work.started
        try:
            yield from _rest(progress, work.options, model, reader)
            return
        except InputError:  # the position comes from another release, or other weights
            yield TextRestarted(progress.embedding_id)
    sources = (_source(reader, progress) for progress in work.started)
    current = 0
    for index, vector in model.encode_streams(sources, options=work.options):
        yield from (TextCompleted(progress.embedding_id) for progress in work.started[current:index])
        current = index
        yield VectorReady(work.started[index].embedding_id, vector)
    yield from (TextCompleted(progress.embedding_id) for progress in work.started[current:])


def _rest(progress: EmbeddingProgress, options: StreamOptions, model: Embedder, reader: Store) -> Iterator[Message]:
    """Resume an interrupted text after its last chunk."""
    for vector in model.encode_stream(_source(reader, progress), options=options, resume=progress.position):
        yield VectorReady(progress.embedding_id, vector)
    yield TextCompleted(progress.embedding_id)


def _source(reader: Store, progress: EmbeddingProgress) -> Iterable[tuple[str, int | None]]:
    return ((piece.text, piece.page) for piece in reader.pieces(progress.text_id))
