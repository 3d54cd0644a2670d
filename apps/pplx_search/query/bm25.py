"""The upper bound of SQLite's BM25 for a query."""

import math

from pplx_edge.text.lexical import match_terms
from pplx_search.query.snapshot import Snapshot

MAX_COUNTED = 20_000  # chunks with a word; counting stops there
_K1 = 1.2
_MIN_IDF = 1e-6  # SQLite's inverse document frequency of words in more than half of all chunks


def bm25_bound(words: str, snapshot: Snapshot) -> float:
    """Return a BM25 that no chunk can exceed: the limit for infinitely many occurrences of every word.

    Words that no chunk contains count in full, although SQLite ignores them in ranking.
    """
    n_chunks = snapshot.n_slots
    counts = [min(snapshot.n_chunks_with(term, MAX_COUNTED + 1), n_chunks) for term in match_terms(words)]
    return (_K1 + 1) * sum(max(_MIN_IDF, math.log((n_chunks - n + 0.5) / (n + 0.5))) for n in counts)
