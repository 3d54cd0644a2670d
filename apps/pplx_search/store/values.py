"""Value types passed to and returned by a store."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from pplx_search.ids import ChunkId, DocumentId, EmbeddingId, FileId, TextId


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
class ScannedFile:
    """A file in a scan: its id, its state, the number of failed attempts, and the reason code if failed or skipped."""

    file_id: FileId
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
class EmbeddingProgress:
    """The number of committed chunks of a text, and the position to resume embedding from (None: the start).

    An embedding is the set of a text's vectors in one generation.
    """

    embedding_id: EmbeddingId
    text_id: TextId
    n_chunks: int
    position: str | None
    complete: bool


@dataclass(frozen=True, slots=True)
class StagedDocument:
    """A staged document: its id, the id of its text, and whether the text was already stored."""

    document_id: DocumentId
    text_id: TextId
    known: bool


@dataclass(frozen=True, slots=True)
class Passage:
    """The text of a chunk, and the text that it is part of."""

    text_id: TextId
    text: str


@dataclass(frozen=True, slots=True)
class Compaction:
    """The number of texts, generations and unused slots that were deleted, and the size of the database in bytes."""

    texts: int
    generations: int
    slots: int
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDocument:
    """A document for display: its location, kind and length.

    `complete` is True if its text has all its vectors in the serving generation, and `n_chunks` counts them.
    """

    id: DocumentId
    path: bytes
    part: str
    collection: str
    kind: str
    title: str
    date: float | None
    metadata: Mapping[str, str]
    remarks: tuple[str, ...]
    text_id: TextId
    n_chars: int
    n_chunks: int
    complete: bool


@dataclass(frozen=True, slots=True, eq=False)
class StoredChunk:
    """A chunk, which is the slice `[start, stop)` of its text, with its vector, int8 `[D]`."""

    id: ChunkId
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
    """The contents of an index: files by state, skipped and failed files by reason code, and sizes.

    Of `n_texts` distinct texts, `n_embedded` have all their vectors in the serving generation, and `n_rebuilt` in the
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
    n_texts: int
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
