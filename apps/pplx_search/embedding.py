"""Texts of the store to vectors in the store, many short ones in a pass, long ones from where they were left."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from pplx_edge import ChunkVector, Embedder, StreamOptions
from pplx_edge.errors import InputError
from pplx_search.store import Generation, Progress, Store

_COMMIT_CHUNKS = 256
_COMMIT_SECONDS = 2.0
OnTokens = Callable[[int], None]


class TextEmbedder:
    """Makes the vectors of texts in a generation. What was committed stays, whatever interrupts the rest."""

    def __init__(
        self,
        store: Store,
        model: Embedder,
        generation: Generation,
        options: StreamOptions,
        on_tokens: OnTokens = lambda n: None,
    ):
        self.store, self.model, self.generation = store, model, generation
        self.options, self.on_tokens = options, on_tokens

    def embed(self, contents: Iterable[int]) -> None:
        """Completes the vectors of texts, named by their numbers."""
        fresh: dict[str, list[Progress]] = {}
        for content in dict.fromkeys(contents):
            progress = self.store.vectors.begin(content, self.generation)
            if progress.complete:
                continue
            if progress.n_chunks:
                self._go_on(progress)
            else:
                fresh.setdefault(self.store.text_format(content), []).append(progress)
        for text_format, started in fresh.items():
            self._from_the_start(started, text_format)

    def _go_on(self, progress: Progress) -> None:
        """A text that was interrupted, from the position behind its last chunk."""
        options = self._options(self.store.text_format(progress.content))
        source = self._source(progress.content)
        try:
            vectors = self.model.encode_stream(source, options=options, resume=progress.position)
            self._keep([progress], ((0, vector) for vector in vectors))
        except InputError:  # of another release, or with other weights under the same name
            self.store.vectors.restart(progress.embedding)
            self._from_the_start([replace(progress, n_chunks=0, position=None)], options.format)

    def _from_the_start(self, started: Sequence[Progress], text_format: str) -> None:
        sources = (self._source(progress.content) for progress in started)
        self._keep(started, self.model.encode_streams(sources, options=self._options(text_format)))

    def _keep(self, started: Sequence[Progress], vectors: Iterator[tuple[int, ChunkVector]]) -> None:
        """Commits the vectors of texts as they come, and each text's completion."""
        vectors_of_store = self.store.vectors
        current, waiting, since = 0, [], time.monotonic()

        def commit(n_complete: int) -> None:
            nonlocal since
            with self.store.transaction():
                vectors_of_store.append(started[current].embedding, waiting)
                for progress in started[current:n_complete]:
                    vectors_of_store.complete(progress.embedding)
            waiting.clear()
            since = time.monotonic()

        try:
            for index, vector in vectors:
                if index > current:
                    commit(index)
                    current = index
                waiting.append(vector)
                self.on_tokens(vector.tokens)
                if len(waiting) >= _COMMIT_CHUNKS or time.monotonic() - since > _COMMIT_SECONDS:
                    commit(current)
        except BaseException:
            with contextlib.suppress(Exception):  # what interrupts is told, not that this could not be saved
                commit(current)
            raise
        commit(len(started))

    def _source(self, content: int) -> Iterable[tuple[str, int | None]]:
        return ((piece.text, piece.page) for piece in self.store.pieces(content))

    def _options(self, text_format: str) -> StreamOptions:
        return replace(self.options, format=text_format)  # type: ignore[arg-type]
