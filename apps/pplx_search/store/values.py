"""Value types passed to and returned by a store."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from pplx_edge.errors import InputError


class FileState(StrEnum):
    """The state of a file in a scan, judged by its metadata.

    `NEW` and `CHANGED` files must be read, and `PENDING` ones were started but not finished. `MOVED` files are indexed
    under another name, and `UNCHANGED` ones are up to date. `FAILED` files could not be read in their current version,
    and `SKIPPED` ones were excluded.
    """

    NEW = "new"
    CHANGED = "changed"
    PENDING = "pending"
    MOVED = "moved"
    UNCHANGED = "unchanged"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """File metadata from the system. The absolute path is bytes, since it may not be valid Unicode."""

    path: bytes
    size: int = 0
    mtime_ns: int = 0
    inode: int = 0
    device: int = 0

    @classmethod
    def of(cls, path: bytes, stat: os.stat_result) -> "FileFacts":
        """Return the facts from an `os.stat` result."""
        return cls(
            path=path,
            size=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            inode=signed(stat.st_ino),
            device=signed(stat.st_dev),
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """A file in a scan: its id, its state, the number of failed attempts, and the reason code if failed or skipped."""

    file: int
    state: FileState
    attempts: int = 0
    code: str = ""


@dataclass(frozen=True, slots=True)
class Root:
    """A folder or single file that belongs to a collection."""

    id: int
    path: bytes


@dataclass(frozen=True, slots=True)
class Collection:
    """A named set of roots with its own rules, which the store keeps without interpreting them."""

    id: int
    name: str
    rules: Mapping[str, Any]
    roots: tuple[Root, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """The vectors of one model with one set of chunking options. Searches use the serving generation."""

    id: int
    fingerprint: str
    settings: Mapping[str, Any]
    dim: int
    serving: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """Embedding progress of a text: chunks committed, and the position to resume from (None: the start)."""

    embedding: int
    content: int
    n_chunks: int
    position: str | None
    complete: bool


@dataclass(frozen=True, slots=True)
class Staged:
    """A staged document: its id, the id of its text, and whether the text was already stored."""

    document: int
    content: int
    known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Limits a search to some documents; empty or None fields do not filter.

    `folders` are absolute paths, which match the path itself and everything below it. `since` (inclusive) and `until`
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
    """A query: its int8 vector `[D]`, its words, or both, for the `k` best hits that pass the filter.

    `depth` is the maximum number of chunks that are scored exactly after the scan of the sign bits.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A search result: a chunk, which is `[start, stop)` of its document's text, with its scores.

    Hits are sorted by `score` (see `fusing`). `cosine` is exact (None without a query vector); higher `bm25` is better
    (None if no word matched). `ranks` maps each ranking that includes the chunk (`dense`, `words`, `phrase`, `name`) to
    its 1-based rank. `copies` counts other documents with the same text.
    """

    chunk: int
    document: int
    content: int
    path: bytes
    part: str
    title: str
    kind: str
    start: int
    stop: int
    line: int
    page: int | None
    heading: tuple[str, ...]
    score: float
    cosine: float | None
    bm25: float | None
    ranks: Mapping[str, int]
    copies: int = 0


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk as the slice `[start, stop)` of its text."""

    content: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Evidence that the answer is among the first hits (see `evidence`).

    `prominence` is the z-score of the best hit's similarity to the query within the index (None without a query
    vector). `share_of_words` is the best hit's BM25 as a share of its upper bound. `exact` is True if a hit contains
    the query word for word, or matches it by name.
    """

    prominence: float | None
    share_of_words: float
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """The null baseline: means and standard deviations of the evidence for unanswerable questions.

    The questions are sentences of the index itself, searched in every document except the one each came from.
    `n_chunks` is the size of the index when it was measured, and `n_sentences` the number of sentences.
    """

    n_chunks: int
    n_sentences: int
    prominence: float
    prominence_spread: float
    share_of_words: float
    share_of_words_spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    """A document for display: its location, kind and length."""

    id: int
    path: bytes
    part: str
    collection: str
    kind: str
    title: str
    date: float | None
    metadata: Mapping[str, str]
    remarks: tuple[str, ...]
    content: int
    n_chars: int
    n_chunks: int
    complete: bool


@dataclass(frozen=True, slots=True, eq=False)
class StoredChunk:
    """A chunk of a text with its vector, int8 `[D]`."""

    id: int
    index: int
    start: int
    stop: int
    line: int
    page: int | None
    heading: tuple[str, ...]
    codes: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """A file with its state, and the reason if it is not indexed."""

    path: bytes
    collection: str
    state: FileState
    code: str = ""
    message: str = ""
    attempts: int = 0
    time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What an index contains: files by state, skipped and failed files by reason code, and sizes.

    Of `n_contents` texts, `n_embedded` have all their vectors in the serving generation, and `n_rebuilt` in the
    generation that is being built, if any.
    """

    indexed: int
    pending: int
    failed: int
    skipped: int
    reasons: Mapping[str, int]
    n_documents: int
    n_chunks: int
    n_chars: int
    n_contents: int
    n_embedded: int
    n_rebuilt: int | None
    serving: Generation | None
    building: Generation | None
    database_bytes: int
    bits_bytes: int
    kernel: str
    remarks: tuple[str, ...] = field(default=())


def signed(number: int) -> int:
    """Return an unsigned 64-bit number as SQLite's signed integer. Some file systems have 64-bit inode numbers."""
    return number - (1 << 64) if number >= 1 << 63 else number
