"""Embed the texts of a store: short texts together in batches, long ones resuming where they stopped.

Background threads encode (see `encoding_ahead`), while the caller submits more texts and commits finished vectors.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType

from pplx_edge import ChunkVector, Embedder, StreamOptions
from pplx_search.encoding_ahead import Completed, EncodingAhead, Ended, Made, Message, Restarted, Work
from pplx_search.store import Generation, Progress, Store

BATCHES_AHEAD = 2  # started in addition to the one being waited for
_BATCH_TEXTS = 64
_COMMIT_CHUNKS = 256
_COMMIT_SECONDS = 2.0
OnVector = Callable[[ChunkVector], None]


@dataclass(slots=True, eq=False)
class Batch:
    """Texts that are embedded together. `postponed` texts were already in progress in an earlier batch."""

    contents: list[int] = field(default_factory=list)
    postponed: list[int] = field(default_factory=list)
    n_open: int = 0  # unfinished works
    error: Exception | None = None


class TextEmbedder:
    """Computes the vectors of texts for a generation. Committed vectors survive any interruption.

    with embedder:
        batch = embedder.begin(contents)  # ids of committed texts
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
        self._under_way: dict[int, Batch] = {}  # batches by text id
        self._waiting: dict[int, list[ChunkVector]] = {}  # vectors to commit, by embedding id
        self._completed: list[int] = []
        self._n_waiting, self._since = 0, time.monotonic()

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
        self._batches, self._under_way, self._waiting, self._completed = {}, {}, {}, []

    def embed(self, contents: Iterable[int]) -> None:
        """Compute the missing vectors of texts, given by id. Raises any error of the model."""
        under_way: deque[Batch] = deque()
        with self:
            try:
                for some in _some(contents):
                    under_way.append(self.begin(some))
                    if len(under_way) > BATCHES_AHEAD:
                        self.finish(under_way.popleft())
                while under_way:
                    self.finish(under_way.popleft())
            except Exception:
                for batch in under_way:
                    self._wait_for(batch)
                raise

    def begin(self, contents: Iterable[int]) -> Batch:
        """Submit the texts whose vectors are incomplete, and return their batch."""
        self._commit()
        batch, fresh, works = Batch(), {}, []
        with self.store.transaction():
            for content in dict.fromkeys(contents):
                if self._is_under_way(content):
                    batch.postponed.append(content)
                    continue
                progress = self.store.vectors.begin(content, self.generation)
                if progress.complete:
                    continue
                batch.contents.append(content)
                text_format = self.store.text_format(content)
                if progress.n_chunks:
                    works.append(self._work(text_format, [progress]))
                else:
                    fresh.setdefault(text_format, []).append(progress)
        works += [self._work(text_format, started) for text_format, started in fresh.items()]
        self._submit(batch, works)
        return batch

    def finish(self, batch: Batch) -> None:
        """Wait for the vectors of a batch and commit them. Raises the error that stopped the batch, if any."""
        self._wait_for(batch)
        if batch.error is not None:
            raise batch.error
        if batch.postponed:
            for other in {self._under_way[content] for content in batch.postponed if content in self._under_way}:
                self._wait_for(other)
            self.embed(batch.postponed)  # already complete, unless the other batch failed

    def keep(self) -> None:
        """Take finished vectors without blocking. Call this while waiting for something else."""
        while self._ahead is not None and (message := self._ahead.get(0)) is not None:
            self._take(message)
        self._commit_when_due()

    def _work(self, text_format: str, started: list[Progress]) -> Work:
        return Work(replace(self.options, markup=text_format), started)  # type: ignore[arg-type]

    def _submit(self, batch: Batch, works: list[Work]) -> None:
        if not works:
            return
        if self._ahead is None:
            self._ahead = EncodingAhead(self.store, self.model)
        batch.n_open = len(works)
        self._under_way |= dict.fromkeys(batch.contents, batch)
        for work in works:
            self._batches[work] = batch
            self._ahead.put(work)

    def _is_under_way(self, content: int) -> bool:
        return content in self._under_way and self._under_way[content].n_open > 0

    def _wait_for(self, batch: Batch) -> None:
        while batch.n_open:
            assert self._ahead is not None  # only `_submit` opens works, and it starts the threads
            message = self._ahead.get(_COMMIT_SECONDS)
            if message is None:
                self._commit()
            else:
                self._take(message)
        self._commit()
        for content in batch.contents:
            if self._under_way.get(content) is batch:
                del self._under_way[content]

    def _take(self, message: Message) -> None:
        self._collect(message)
        self._commit_when_due()
        if isinstance(message, Made):
            self.on_vector(message.vector)

    def _collect(self, message: Message) -> None:
        match message:
            case Made(embedding, vector):
                self._waiting.setdefault(embedding, []).append(vector)
                self._n_waiting += 1
            case Completed(embedding):
                self._completed.append(embedding)
            case Restarted(embedding):
                self._commit()
                self.store.vectors.restart(embedding)
            case Ended(work, error):
                batch = self._batches.pop(work)
                batch.n_open -= 1
                batch.error = batch.error or error

    def _commit_when_due(self) -> None:
        if self._n_waiting >= _COMMIT_CHUNKS or time.monotonic() - self._since > _COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        """Commit the vectors received so far, and mark the texts that are complete."""
        waiting, completed = self._waiting, self._completed
        self._waiting, self._completed, self._n_waiting = {}, [], 0
        if waiting or completed:
            with self.store.transaction():
                for embedding, vectors in waiting.items():
                    self.store.vectors.append(embedding, vectors)
                for embedding in completed:
                    self.store.vectors.complete(embedding)
        self._since = time.monotonic()


def _some(contents: Iterable[int]) -> Iterator[list[int]]:
    found: list[int] = []
    for content in contents:
        found.append(content)
        if len(found) == _BATCH_TEXTS:
            yield found
            found = []
    if found:
        yield found
