"""The values that go into a store and come out of it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from pplx_edge.errors import InputError


class FileState(StrEnum):
    """What a scan finds out about a file, by what the system says of it.

    `NEW` and `CHANGED` have to be read, and `PENDING` was begun and not finished; `MOVED` is known under another name,
    `UNCHANGED` is indexed as it is. `FAILED` could not be read when it was as it is now, `SKIPPED` was left out.
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
    """A file as the system describes it, by its absolute path in bytes, which need not be valid Unicode."""

    path: bytes
    size: int = 0
    mtime_ns: int = 0
    inode: int = 0
    device: int = 0

    @classmethod
    def of(cls, path: bytes, stat: os.stat_result) -> "FileFacts":
        """The facts that `os.stat` tells."""
        return cls(
            path=path,
            size=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            inode=signed(stat.st_ino),
            device=signed(stat.st_dev),
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """A file of a scan: its number in the store, its state, and how often and why it failed, or why it was skipped."""

    file: int
    state: FileState
    attempts: int = 0
    code: str = ""


@dataclass(frozen=True, slots=True)
class Root:
    """A folder, or a single file, that a collection takes its files from."""

    id: int
    path: bytes


@dataclass(frozen=True, slots=True)
class Collection:
    """A named set of roots with rules of its own, which the store keeps and does not look at."""

    id: int
    name: str
    rules: Mapping[str, Any]
    roots: tuple[Root, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """The vectors of one model with one way of cutting and reading text. Searches use the one that is serving."""

    id: int
    fingerprint: str
    settings: Mapping[str, Any]
    dim: int
    serving: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the vectors of a text have come: chunks committed, and the position to go on from (None: the start)."""

    embedding: int
    content: int
    n_chunks: int
    position: str | None
    complete: bool


@dataclass(frozen=True, slots=True)
class Staged:
    """A document that was handed over: its number, that of its text, and whether its text was there before."""

    document: int
    content: int
    known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which documents a search looks at; what is empty or None does not limit.

    `folders` are absolute paths: a document is in one if it is the path or lies below it. `since` (inclusive) and
    `until` (exclusive) are seconds since 1970 and are compared with the document's own date, or with the file's when
    it has none. `author` and `recipient` are found anywhere in the field, whatever the case.
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
    """A question: its vector int8 `[D]`, its words, or both; `k` hits are wanted of what the filter lets through.

    `depth` is the most chunks that are compared exactly after the scan of the bits.
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
            raise InputError(f"a query's vector must be int8 [D], got {self.codes.dtype} {list(self.codes.shape)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A chunk that was found, `[start, stop)` of its document's text, and why.

    `score` is what hits are ordered by (see `fusing`). `cosine` is exact (None without a query vector), `bm25` is
    higher for better (None where no word matched). `ranks` has the rank from 1 in each ranking that names the chunk:
    `dense`, `words`, `phrase`, `name`. `copies` counts further documents with the very same text.
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
    """The slice `[start, stop)` of a text that a chunk is."""

    content: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What speaks for the answer being among the first hits: see `evidence`.

    `prominence`: by how many standard deviations of the index the best hit's vector leans to the query's (None without
    a query vector). `share_of_words`: how much of what the question's words weigh together the best hit has, from 0.
    `exact`: a hit holds the question word for word, or has it as its name.
    """

    prominence: float | None
    share_of_words: float
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """The evidence for questions that nothing in an index answers: means and standard deviations.

    They are of sentences of the index itself, asked of all documents but their own. `n_chunks` is how many chunks the
    index had then, `n_sentences` how many sentences were asked.
    """

    n_chunks: int
    n_sentences: int
    prominence: float
    prominence_spread: float
    share_of_words: float
    share_of_words_spread: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    """A document as it is shown: where it is, what it is, how long."""

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
    """A file and why it is (not) indexed."""

    path: bytes
    collection: str
    state: FileState
    code: str = ""
    message: str = ""
    attempts: int = 0
    time: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Coverage: files by state, reasons by code for those that were skipped or failed, and what the index holds.

    `n_embedded` of `n_contents` texts have all their vectors in the serving generation, `n_rebuilt` of them in the one
    that is being built, if one is.
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
    """SQLite's integers have a sign; some file systems' inode numbers use all 64 bits."""
    return number - (1 << 64) if number >= 1 << 63 else number
