"""Hybrid search over an engine, with the ranking of pplx-search.

The engine finds the nearest rows by Hamming distance of the sign bits, within a filter; the rest is `query.ranking`:
exact int8 cosines of these candidates, words, phrases and their fusion. So the results are those of a local store with
the same vectors and texts, if the engine searches exactly; an approximate index may miss candidates.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.vectors.codes import packed_signs
from pplx_scale.words import Words
from pplx_search.ids import ChunkId, TextId
from pplx_search.query.kernels import open_kernel, signs
from pplx_search.query.ranking import rank
from pplx_search.query.scanner import Scanner
from pplx_search.query.snapshot import Passing
from pplx_search.query.types import MAX_DEPTH, Filter, Query, RankedChunk

_BLOCK = 1000  # matches of words that are filtered at once


class Engine(Protocol):
    """A vector engine that holds the sign bits and the int8 codes of a corpus, by the numbers of its vectors."""

    @property
    def n_vectors(self) -> int:
        """The number of vectors."""
        ...

    @property
    def dim(self) -> int:
        """The dimension of the vectors."""
        ...

    def nearest(self, bits: np.ndarray, count: int, where: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers, int64, and the codes, int8 `[N, D]`, of the rows nearest to packed bits by Hamming."""
        ...

    def codes(self, numbers: Sequence[int], where: Any = None) -> Mapping[int, np.ndarray]:
        """Return the codes of those of the given rows that pass the filter, by their numbers."""
        ...


def search(
    engine: Engine,
    codes: np.ndarray | None,
    question: str = "",
    *,
    words: Words | None = None,
    k: int = 10,
    where: Any = None,
    depth: int = MAX_DEPTH,
) -> list[RankedChunk]:
    """Return the best `k` vectors for a query, best first; the `chunk_id` of each is its number.

    `codes` is the int8 vector of the query, `question` its words, which need `words`. `where` is a filter in the
    language of the engine, and `depth` how many candidates are compared exactly.
    """
    if question and words is None:
        raise InputError("a search for words needs a file of words; make one with Words.build")
    if codes is not None and codes.shape != (engine.dim,):
        raise InputError(f"the query vector has {codes.shape[-1]} dimensions, the engine {engine.dim}")
    query = Query(codes=codes, words=question, k=k, depth=depth)
    snapshot = _Candidates(engine, words, where, codes, depth)
    return rank(query, snapshot, Scanner(open_kernel(), 1))


@dataclass(slots=True, eq=False)
class _Slots:
    """The rows that the engine found: numbers, ascending, and codes."""

    numbers: np.ndarray
    codes: np.ndarray


class _Candidates:
    """A snapshot (`pplx_search.query.snapshot`) of the rows that an engine found for one query.

    `n_slots` is the number of all rows of the engine, because BM25 depends on it.
    """

    def __init__(self, engine: Engine, words: Words | None, where: Any, codes: np.ndarray | None, depth: int):
        self._engine, self._words, self._where = engine, words, where
        self.n_slots, self.dim = engine.n_vectors, engine.dim
        self._slots = _Slots(np.zeros(0, np.int64), np.zeros((0, engine.dim), np.int8))
        if codes is not None:
            numbers, rows = engine.nearest(packed_signs(codes), depth, where)
            order = np.argsort(numbers)  # rows at the same distance keep the order of the store
            self._slots = _Slots(numbers[order], rows[order])
        self.bits = signs(self._slots.codes)
        self._known = dict(zip(self._slots.numbers.tolist(), self._slots.codes, strict=True))
        self._absent: set[int] = set()

    def passing(self, wanted: Filter) -> Passing:
        """See `Snapshot`: the engine has filtered the vectors, and `matches` filters the words."""
        return Passing(np.broadcast_to(np.True_, (self.n_slots + 1,)), None, self.n_slots)

    def chunks_at(self, slots: np.ndarray) -> np.ndarray:
        """See `Snapshot`."""
        return self._slots.numbers[slots]

    def slots_of(self, chunk_ids: np.ndarray) -> np.ndarray:
        """See `Snapshot`."""
        return np.searchsorted(self._slots.numbers, chunk_ids)

    def text_ids_of(self, chunk_ids: np.ndarray) -> np.ndarray:
        """See `Snapshot`: each vector counts as a text of its own."""
        return chunk_ids

    def first_chunk(self, text_id: TextId) -> ChunkId | None:
        """See `Snapshot`."""
        return ChunkId(int(text_id))

    def codes(self, chunk_ids: np.ndarray) -> np.ndarray:
        """See `Snapshot`."""
        self._fetch(chunk_ids.tolist())
        return np.stack([self._known[number] for number in chunk_ids.tolist()])

    def matches(self, expression: str) -> Iterator[tuple[ChunkId, float]]:
        """See `Snapshot`. Rows that the filter excludes are left out, a block at a time."""
        if self._words is None:
            return
        block: list[tuple[ChunkId, float]] = []
        for row in self._words.matches(expression):
            block.append(row)
            if len(block) == _BLOCK:
                yield from self._passing_rows(block)
                block = []
        yield from self._passing_rows(block)

    def n_chunks_with(self, term: str, limit: int) -> int:
        """See `Snapshot`."""
        return self._words.n_chunks_with(term, limit) if self._words else 0

    def texts_named(self, expression: str, limit: int) -> list[TextId]:
        """See `Snapshot`: a corpus has no file names or titles."""
        return []

    def _passing_rows(self, block: list[tuple[ChunkId, float]]) -> Iterator[tuple[ChunkId, float]]:
        if self._where is None:
            yield from block
            return
        self._fetch([number for number, _ in block])
        yield from (row for row in block if row[0] in self._known)

    def _fetch(self, numbers: list[int]) -> None:
        missing = [number for number in numbers if number not in self._known and number not in self._absent]
        if missing:
            found = self._engine.codes(missing, self._where)
            self._known.update(found)
            self._absent.update(set(missing) - found.keys())
