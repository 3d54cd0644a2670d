"""The same chunks without late chunking: a model whose streams encode each chunk by itself."""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from pplx_edge import ChunkVector, Embedder, StreamOptions
from pplx_edge.text.sources import Source, pieces
from pplx_edge.types import Precision, SessionWrapper, TokenBatch

_AT_ONCE = 64
_DEFAULTS = StreamOptions()


class ChunksAlone(Embedder):
    """An embedder whose streams give each chunk the vector that `encode` gives its text.

    The chunks are those of a stream of the given model, so they are the same as with late chunking.
    """

    def __init__(self, model: Embedder):
        super().__init__(model.session, model.tokenizer, model.fingerprint)
        self._chunker = Embedder(_NotComputed(model.session), model.tokenizer, model.fingerprint)

    def encode_stream(
        self,
        source: Source,
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        options: StreamOptions = _DEFAULTS,
        resume: str | None = None,
    ) -> Generator[ChunkVector, None, None]:
        for _, vector in self.encode_streams([source], precision, dim=dim, options=options, resume=resume):
            yield vector

    def encode_streams(
        self,
        sources: Iterable[Source],
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        options: StreamOptions = _DEFAULTS,
        resume: str | None = None,
    ) -> Generator[tuple[int, ChunkVector], None, None]:
        texts: list[str] = []
        cut = self._chunker.encode_streams(_kept(sources, texts), precision, dim=dim, options=options, resume=resume)
        while some := list(islice(cut, _AT_ONCE)):
            own = [texts[index][vector.start : vector.stop] for index, vector in some]
            codes = self.encode(own, precision, dim=dim, show_progress=False)
            for (index, vector), row in zip(some, codes, strict=True):
                yield index, replace(vector, codes=row)


def _kept(sources: Iterable[Source], texts: list[str]) -> Iterator[list[tuple[str, int | None]]]:
    """Yield the sources again, and append the text of each to `texts`."""
    for source in sources:
        found = [(piece.text, piece.page) for piece in pieces(source)]
        texts.append("".join(text for text, _ in found))
        yield found


class _NotComputed(SessionWrapper):
    """A session that computes nothing: every mean is zero."""

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        return np.zeros((len(batch.spans), self.spec.dim), np.float32)
