"""The on-disk search index: texts, full-text index and vectors of a person's files. See `store.Store`."""

from pplx_search.query.types import Answer, Evidence, Filter, Hit, NullBaseline, Query
from pplx_search.store.errors import StoreBusy, StoreDamaged
from pplx_search.store.files import Files, Scan
from pplx_search.store.roots import Collections
from pplx_search.store.store import Store
from pplx_search.store.text_digest import text_digest
from pplx_search.store.values import (
    Collection,
    Compaction,
    EmbeddingProgress,
    FileFacts,
    FileReport,
    FileState,
    Generation,
    Passage,
    Root,
    ScannedFile,
    StagedDocument,
    Status,
    StoredChunk,
    StoredDocument,
)
from pplx_search.store.vectors import Vectors

__all__ = [
    "Answer",
    "Collection",
    "Collections",
    "Compaction",
    "EmbeddingProgress",
    "Evidence",
    "FileFacts",
    "FileReport",
    "FileState",
    "Files",
    "Filter",
    "Generation",
    "Hit",
    "NullBaseline",
    "Passage",
    "Query",
    "Root",
    "Scan",
    "ScannedFile",
    "StagedDocument",
    "Status",
    "Store",
    "StoreBusy",
    "StoreDamaged",
    "StoredChunk",
    "StoredDocument",
    "Vectors",
    "text_digest",
]
