"""Embed the texts of a store: short texts together in batches, long ones resuming where they stopped.

Background threads encode (see `encoder_threads`), while the caller submits more texts and commits finished vectors.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from types import TracebackType

from pplx_edge import ChunkVector, Embedder, StreamOptions
from pplx_search.encoder_threads import (
    EncodingAhead,
    Message,
    TextCompleted,
    TextRestarted,
    VectorReady,
    Work,
    WorkEnded,
)
from pplx_search.ids import EmbeddingId, TextId
from pplx_search.store import EmbeddingProgress, Generation, Store

BATCHES_AHEAD = 2  # started in addition to the one being waited for
_BATCH_TEXTS = 64
_COMMIT_CHUNKS = 256
_COMMIT_SECONDS = 2.0
OnVector = Callable[[ChunkVector], None]


@dataclass(slots=True, eq=False)
class Batch:
    """Texts that are embedded together. `postponed` texts were already in progress in an earlier batch."""

    text_ids: list[TextId] = field(default_factory=list)
    postponed: list[TextId] = field(default_factory=list)
    n_open: int = 0  # unfinished works
    error: Exception | None = None


class TextEmbedder:
    """Computes the vectors of texts for a generation. Committed vectors survive any interruption.

    with embedder:
        batch = embedder.begin(text_ids)  # of committed texts
        …
        embedder.finish(batch)
    """

    def __init__(
        self,
        store: Store,
        model: Embedder,
        generation: Generation,
        options: StreamOptions,
        on_vector: OnVector = lambda vector: None,
    ):
        self.store, self.model, self.generation = store, model, generation
        self.options, self.on_vector = options, on_vector
        self._depth = 0
        self._ahead: EncodingAhead | None = None
        self._batches: dict[Work, Batch] = {}  # batches of unfinished works
        self._in_progress: dict[TextId, Batch] = {}
        self._uncommitted: dict[EmbeddingId, list[ChunkVector]] = {}
        self._completed: list[EmbeddingId] = []
        self._n_uncommitted, self._last_commit = 0, time.monotonic()

    def __enter__(self) -> "TextEmbedder":
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop encoding and commit the vectors that are finished."""
        self._depth -= 1
        if self._depth or self._ahead is None:
            return
        ahead, self._ahead = self._ahead, None
        quiet = contextlib.nullcontext() if error is None else contextlib.suppress(Exception)
        with quiet:  # report the original error, not one caused by it
            for message in ahead.close():
                self._collect(message)
            self._commit()
        self._batches, self._in_progress, self._uncommitted, self._completed = {}, {}, {}, []

    def embed(self, text_ids: Iterable[TextId]) -> None:
        """Compute the missing vectors of texts. Raises any error of the model."""
        begun: deque[Batch] = deque()
        remaining = iter(text_ids)
        with self:
            try:
                while some := list(islice(remaining, _BATCH_TEXTS)):
                    begun.append(self.begin(some))
                    if len(begun) > BATCHES_AHEAD:
                        self.finish(begun.popleft())
                while begun:
                    self.finish(begun.popleft())
            except Exception:
                for batch in begun:
                    self._wait_for(batch)
                raise

    def begin(self, text_ids: Iterable[TextId]) -> Batch:
        """Submit the texts whose vectors are incomplete, and return their batch."""
        self._commit()
        batch, fresh, works = Batch(), {}, []
        with self.store.transaction():
            for text_id in dict.fromkeys(text_ids):
                if self._is_in_progress(text_id):
                    batch.postponed.append(text_id)
                    continue
                progress = self.store.vectors.begin(text_id, self.generation)
                if progress.complete:
                    continue
                batch.text_ids.append(text_id)
                markup = self.store.markup(text_id)
                if progress.n_chunks:
                    works.append(self._work(markup, [progress]))
                else:
                    fresh.setdefault(markup, []).append(progress)
        works += [self._work(markup, started) for markup, started in fresh.items()]
        self._submit(batch, works)
        return batch

    def finish(self, batch: Batch) -> None:
        """Wait for the vectors of a batch and commit them. Raises the error that stopped the batch, if any."""
        self._wait_for(batch)
        if batch.error is not None:
            raise batch.error
        if batch.postponed:
            for other in {self._in_progress[each] for each in batch.postponed if each in self._in_progress}:
                self._wait_for(other)
            self.embed(batch.postponed)  # already complete, unless the other batch failed

    def keep(self) -> None:
        """Receive finished vectors without blocking. Call this while waiting for something else."""
        while self._ahead is not None and (message := self._ahead.get(0)) is not None:
            self._take(message)
        self._commit_when_due()

    def _work(self, markup: str, started: list[EmbeddingProgress]) -> Work:
        return Work(replace(self.options, markup=markup), started)  # type: ignore[arg-type]

    def _submit(self, batch: Batch, works: list[Work]) -> None:
        if not works:
            return
        if self._ahead is None:
            self._ahead = EncodingAhead(self.store, self.model)
        batch.n_open = len(works)
        self._in_progress |= dict.fromkeys(batch.text_ids, batch)
        for work in works:
            self._batches[work] = batch
            self._ahead.put(work)

    def _is_in_progress(self, text_id: TextId) -> bool:
        return text_id in self._in_progress and self._in_progress[text_id].n_open > 0

    def _wait_for(self, batch: Batch) -> None:
        while batch.n_open:
            assert self._ahead is not None  # only `_submit` opens works, and it starts the threads
            message = self._ahead.get(_COMMIT_SECONDS)
            if message is None:
                self._commit()
            else:
                self._take(message)
        self._commit()
        for text_id in batch.text_ids:
            if self._in_progress.get(text_id) is batch:
                del self._in_progress[text_id]

    def _take(self, message: Message) -> None:
        self._collect(message)
        self._commit_when_due()
        if isinstance(message, VectorReady):
            self.on_vector(message.vector)

    def _collect(self, message: Message) -> None:
        match message:
            case VectorReady(embedding_id, vector):
                self._uncommitted.setdefault(embedding_id, []).append(vector)
                self._n_uncommitted += 1
            case TextCompleted(embedding_id):
                self._completed.append(embedding_id)
            case TextRestarted(embedding_id):
                self._commit()
                self.store.vectors.restart(embedding_id)
            case WorkEnded(work, error):
                batch = self._batches.pop(work)
                batch.n_open -= 1
                batch.error = batch.error or error

    def _commit_when_due(self) -> None:
        if self._n_uncommitted >= _COMMIT_CHUNKS or time.monotonic() - self._last_commit > _COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        """Commit the vectors received so far, and mark the texts that are complete."""
        uncommitted, completed = self._uncommitted, self._completed
        self._uncommitted, self._completed, self._n_uncommitted = {}, [], 0
        if uncommitted or completed:
            with self.store.transaction():
                for embedding_id, vectors in uncommitted.items():
                    self.store.vectors.append(embedding_id, vectors)
                for embedding_id in completed:
                    self.store.vectors.complete(embedding_id)
        self._last_commit = time.monotonic()
