"""Combine the legs of a search into one ranking.

    score = 0.3 · cosine + 0.7 · BM25 / bound + 0.2 for an exact phrase + 0.2 for a name match

The numbers are `WEIGHTS`, which `pplx-edge bench search fusion` fits. The bound is the upper bound of BM25 for the
query, so that both terms are at most 1. The score uses the values of a leg rather than its ranks, because ranks do not
say how much better the first chunk is than the second.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pplx_search.ids import ChunkId
from pplx_search.query.types import RankedChunk

DENSE, WORDS, PHRASE, NAME = "dense", "words", "phrase", "name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weight of the cosine, that of BM25 being the rest to 1, and what a phrase and a name match add."""

    cosine: float
    phrase: float
    name: float


WEIGHTS = Weights(cosine=0.3, phrase=0.2, name=0.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Legs:
    """The chunks that each leg of a search found, best first.

    `dense` maps them to their exact cosine, `words` and `phrase` to their BM25, which is at most `bm25_bound`.
    `other_cosines` are the exact cosines of chunks that only the other legs found.
    """

    dense: Mapping[ChunkId, float] = field(default_factory=dict)
    words: Mapping[ChunkId, float] = field(default_factory=dict)
    phrase: Mapping[ChunkId, float] = field(default_factory=dict)
    name: Sequence[ChunkId] = ()
    bm25_bound: float = 0.0
    other_cosines: Mapping[ChunkId, float] = field(default_factory=dict)

    @property
    def cosines(self) -> dict[ChunkId, float]:
        """The exact cosine of each chunk for which it is known."""
        return {**self.dense, **self.other_cosines}

    @property
    def bm25(self) -> dict[ChunkId, float]:
        """The BM25 of each chunk for which it is known."""
        return {**self.phrase, **self.words}

    def by_name(self) -> dict[str, Iterable[ChunkId]]:
        """Return the chunks of each leg, best first, by the name of the leg."""
        return {DENSE: self.dense, WORDS: self.words, PHRASE: self.phrase, NAME: self.name}


def fuse(legs: Legs, weights: Weights = WEIGHTS) -> dict[ChunkId, float]:
    """Return the score of each chunk that a leg found, best first. Equal scores keep the order of the legs.

    A chunk without a cosine was too far from the query for the dense leg, so it gets the lowest known cosine.
    """
    cosines, bm25 = legs.cosines, legs.bm25
    lowest = min(cosines.values(), default=0.0)
    names = set(legs.name)
    scores: dict[ChunkId, float] = {}
    for leg in legs.by_name().values():
        for chunk_id in leg:
            if chunk_id not in scores:
                share = bm25.get(chunk_id, 0.0) / legs.bm25_bound if legs.bm25_bound else 0.0
                bonus = weights.phrase * (chunk_id in legs.phrase) + weights.name * (chunk_id in names)
                cosine = cosines.get(chunk_id, lowest)
                scores[chunk_id] = weights.cosine * cosine + (1 - weights.cosine) * share + bonus
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def best_chunks(legs: Legs, k: int) -> list[RankedChunk]:
    """Return the `k` chunks with the highest scores, best first."""
    cosines, bm25 = legs.cosines, legs.bm25
    ranks = {
        name: {chunk_id: rank for rank, chunk_id in enumerate(leg, start=1)} for name, leg in legs.by_name().items()
    }
    return [
        RankedChunk(
            chunk_id=chunk_id,
            score=score,
            cosine=cosines.get(chunk_id),
            bm25=bm25.get(chunk_id),
            ranks={name: leg[chunk_id] for name, leg in ranks.items() if chunk_id in leg},
        )
        for chunk_id, score in list(fuse(legs).items())[:k]
    ]
