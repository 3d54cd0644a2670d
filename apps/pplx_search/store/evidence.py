"""Evidence that the answer to a query is among its hits, as figures that are comparable between indexes.

A cosine or BM25 score depends on the query, its language and the other documents in the index. The evidence therefore
relates each score to the same query's scores in the rest of the index. A filter has no effect on the figures, because
they use the whole index.
"""

from collections.abc import Sequence

import numpy as np

from pplx_search.store.database import Database
from pplx_search.store.kernel import Kernel, leanings
from pplx_search.store.snapshot import Snapshot
from pplx_search.store.values import Evidence, Hit, Query
from pplx_search.store.word_weights import most_bm25

FIRST_HITS = 10  # hits that count as evidence
_SAMPLE = 1024  # sampled rows of the bits file that represent all rows


def gather(database: Database, kernel: Kernel, snapshot: Snapshot, query: Query, hits: Sequence[Hit]) -> Evidence:
    """Return the evidence in the first hits of a query, which must come from this snapshot."""
    first = hits[:FIRST_HITS]
    return Evidence(
        prominence=_prominence(kernel, snapshot, query, [hit.chunk for hit in first]),
        share_of_words=_share_of_words(database, snapshot, query.words, first),
        exact=any("name" in hit.ranks or "phrase" in hit.ranks for hit in first),
    )


def _prominence(kernel: Kernel, snapshot: Snapshot, query: Query, chunks: Sequence[int]) -> float | None:
    """Return the z-score of the best chunk among asymmetric scores of the query with a sample of the index."""
    if query.codes is None or not chunks:
        return None
    sample = np.unique(np.linspace(0, snapshot.n_slots - 1, min(snapshot.n_slots, _SAMPLE)).astype(np.int64))
    rows = np.concatenate([snapshot.slots_of(np.array(chunks, np.int64)), sample])
    found = leanings(kernel, query.codes, snapshot.bits[rows])
    best, others = found[: len(chunks)].max(), found[len(chunks) :]
    spread = others.std()
    return float((best - others.mean()) / spread) if spread else 0.0


def _share_of_words(database: Database, snapshot: Snapshot, words: str, hits: Sequence[Hit]) -> float:
    """Return the BM25 score of the best hit, divided by its upper bound."""
    most = most_bm25(database, snapshot, words)
    return max((hit.bm25 or 0.0 for hit in hits), default=0.0) / most if most else 0.0
