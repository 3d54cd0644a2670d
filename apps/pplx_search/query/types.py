"""Queries, filters, hits, and the evidence that a query is answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pplx_edge.errors import InputError
from pplx_search.ids import ChunkId, DocumentId, TextId
from pplx_search.query.full_text import without_surrogates


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Limits a search to some documents; empty or None fields do not filter.

    `folders` are absolute paths, which match the path itself and everything inside it. `since` (inclusive) and `until`
    (exclusive) are seconds since 1970, compared with the date of the document, or of the file if the document has
    none. `author` and `recipient` match any part of the field, ignoring case.
    """

    collections: tuple[str, ...] = ()
    folders: tuple[bytes, ...] = ()
    kinds: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    author: str = ""
    recipient: str = ""


EVERYTHING = Filter()
MAX_DEPTH = 4096


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Query:
    """A query for the `k` best chunks that pass the filter: its int8 vector `[D]`, its words, or both.

    `depth` is the maximum number of chunks whose exact cosine is computed after the scan of the sign bits.
    """

    codes: np.ndarray | None = None
    words: str = ""
    k: int = 10
    filter: Filter = EVERYTHING
    depth: int = MAX_DEPTH

    def __post_init__(self) -> None:
        if self.k < 1 or self.depth < 1:
            raise InputError(f"k {self.k} and depth {self.depth} must be at least 1")
        if self.codes is not None and (self.codes.dtype != np.int8 or self.codes.ndim != 1):
            raise InputError(f"a query vector must be int8 [D], got {self.codes.dtype} {list(self.codes.shape)}")
        object.__setattr__(self, "words", without_surrogates(self.words))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedChunk:
    """A chunk with its score (see `fusion`).

    `cosine` is exact; it is None without a query vector. A higher `bm25` is better; it is None if no word matched.
    `ranks` maps each leg that found the chunk (`dense`, `words`, `phrase`, `name`) to the chunk's 1-based rank in it.
    """

    chunk_id: ChunkId
    score: float
    cosine: float | None
    bm25: float | None
    ranks: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit(RankedChunk):
    """A search result: the slice `[start, stop)` of a document's text.

    `date` is in seconds since 1970, or None if the document has no date. `copies` counts the other documents that pass
    the filter and have the same text.
    """

    document_id: DocumentId
    text_id: TextId
    path: bytes
    part: str
    title: str
    kind: str
    collection: str
    date: float | None
    start: int
    stop: int
    line: int
    page: int | None
    heading: tuple[str, ...]
    copies: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Figures that indicate whether the first hits answer the query (see `evidence`).

    `cosine_z` is the z-score of the best hit's similarity to the query among all chunks, or None without a query
    vector. `bm25_share` is the best hit's BM25 divided by its upper bound. `exact` is True if one of the hits contains
    the query word for word, or matches it by name.
    """

    cosine_z: float | None
    bm25_share: float
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NullBaseline:
    """Means and standard deviations of the evidence for unanswerable questions.

    The questions are sentences of the index itself, searched in every text except the one each came from. `n_chunks` is
    the size of the index when the baseline was measured, and `n_sentences` the number of sentences.
    """

    n_chunks: int
    n_sentences: int
    cosine_z_mean: float
    cosine_z_std: float
    bm25_share_mean: float
    bm25_share_std: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The hits for a query, best first, with their texts and the evidence, all read in one transaction.

    `model` is the name of the model whose vectors were searched, and `null_baseline` that of its vectors; each is None
    if the index has none.
    """

    hits: Sequence[Hit]
    texts: Sequence[str]
    evidence: Evidence
    model: str | None
    null_baseline: NullBaseline | None
