"""The state of an index, as far as ranking needs to know it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pplx_search.ids import ChunkId, TextId
from pplx_search.query.types import Filter


@dataclass(frozen=True, slots=True, eq=False)
class Passing:
    """The result of a filter: a flag per text id, bool, and per row of the bits file, bool (None: every row passes)."""

    texts: np.ndarray
    slots: np.ndarray | None
    n_slots: int


class Snapshot(Protocol):
    """One state of an index. It must only be used inside the transaction in which it was obtained.

    A slot is a row of sign bits. Arrays of slots, chunk ids and text ids are int64 `[N]`.
    """

    @property
    def dim(self) -> int:
        """The dimension of the vectors."""
        ...

    @property
    def n_slots(self) -> int:
        """The number of slots, including unused ones."""
        ...

    @property
    def bits(self) -> np.ndarray:
        """The packed signs of all vectors, uint8 `[n_slots, W]`, in whole words."""
        ...

    def passing(self, wanted: Filter) -> Passing:
        """Return the texts and slots that pass a filter."""
        ...

    def chunks_at(self, slots: np.ndarray) -> np.ndarray:
        """Return the ids of the chunks whose signs are in the slots."""
        ...

    def slots_of(self, chunk_ids: np.ndarray) -> np.ndarray:
        """Return the slots that contain the signs of the chunks."""
        ...

    def text_ids_of(self, chunk_ids: np.ndarray) -> np.ndarray:
        """Return the ids of the texts that the chunks are part of."""
        ...

    def first_chunk(self, text_id: TextId) -> ChunkId | None:
        """Return the first chunk of a text, or None if the text has no chunks."""
        ...

    def codes(self, chunk_ids: np.ndarray) -> np.ndarray:
        """Return the vectors of the chunks, int8 `[N, dim]`."""
        ...

    def matches(self, expression: str) -> Iterator[tuple[ChunkId, float]]:
        """Yield the chunks that match an FTS5 expression with their BM25 (higher is better), best first."""
        ...

    def n_chunks_with(self, term: str, limit: int) -> int:
        """Return the number of chunks that match an FTS5 term, counting no further than `limit`."""
        ...

    def texts_named(self, expression: str, limit: int) -> list[TextId]:
        """Return the texts whose file name or title matches an FTS5 expression, best first."""
        ...
