"""The on-disk search index: texts, full-text index and vectors of a person's files. See `store.Store`."""

from pplx_search.store.digests import content_digest
from pplx_search.store.errors import StoreBusy, StoreDamaged
from pplx_search.store.files import Files, Scan
from pplx_search.store.roots import Collections
from pplx_search.store.store import Store
from pplx_search.store.sweeping import Swept
from pplx_search.store.values import (
    Collection,
    Evidence,
    FileFacts,
    FileReport,
    FileState,
    Filter,
    Generation,
    Hit,
    Passage,
    Progress,
    Query,
    Root,
    Seen,
    Staged,
    Status,
    StoredChunk,
    StoredDocument,
    Yardstick,
)
from pplx_search.store.vectors import Vectors

__all__ = [
    "Collection",
    "Collections",
    "Evidence",
    "FileFacts",
    "FileReport",
    "FileState",
    "Files",
    "Filter",
    "Generation",
    "Hit",
    "Passage",
    "Progress",
    "Query",
    "Root",
    "Scan",
    "Seen",
    "Staged",
    "Status",
    "Store",
    "StoreBusy",
    "StoreDamaged",
    "StoredChunk",
    "StoredDocument",
    "Swept",
    "Vectors",
    "Yardstick",
    "content_digest",
]
