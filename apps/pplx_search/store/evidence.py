"""What speaks for the answer being among the hits of a search, in figures that mean the same in every index.

A cosine or a BM25 score alone says little: it depends on the question, on its language and on what else there is. So
each is held against what the same question gives elsewhere in the same index. A filter changes neither figure, as both
are taken of the whole index.
"""

from collections.abc import Sequence

import numpy as np

from pplx_search.store.database import Database
from pplx_search.store.kernel import Kernel, leanings
from pplx_search.store.snapshot import Snapshot
from pplx_search.store.values import Evidence, Hit, Query
from pplx_search.store.word_weights import most_bm25

FIRST_HITS = 10  # in which it is looked for
_SAMPLE = 1024  # rows of bits that stand for all of them


def gather(database: Database, kernel: Kernel, snapshot: Snapshot, query: Query, hits: Sequence[Hit]) -> Evidence:
    """The evidence in the first of the hits, which were found for a query with a vector in this snapshot."""
    first = hits[:FIRST_HITS]
    return Evidence(
        prominence=_prominence(kernel, snapshot, query, [hit.chunk for hit in first]),
        share_of_words=_share_of_words(database, snapshot, query.words, first),
        exact=any("name" in hit.ranks or "phrase" in hit.ranks for hit in first),
    )


def _prominence(kernel: Kernel, snapshot: Snapshot, query: Query, chunks: Sequence[int]) -> float | None:
    """By how many standard deviations of the index the best chunk leans to the query, by its bits."""
    if query.codes is None or not chunks:
        return None
    sample = np.unique(np.linspace(0, snapshot.n_slots - 1, min(snapshot.n_slots, _SAMPLE)).astype(np.int64))
    rows = np.concatenate([snapshot.slots_of(np.array(chunks, np.int64)), sample])
    found = leanings(kernel, query.codes, snapshot.bits[rows])
    best, others = found[: len(chunks)].max(), found[len(chunks) :]
    spread = others.std()
    return float((best - others.mean()) / spread) if spread else 0.0


def _share_of_words(database: Database, snapshot: Snapshot, words: str, hits: Sequence[Hit]) -> float:
    """BM25 of the best hit over the most that it could be."""
    most = most_bm25(database, snapshot, words)
    return max((hit.bm25 or 0.0 for hit in hits), default=0.0) / most if most else 0.0
