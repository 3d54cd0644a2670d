"""Frequencies of words in SQLite's BM25, and the upper bound of the BM25 for a query."""

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
    return (_K1 + 1) * sum(idf(term, snapshot) for term in match_terms(words))


def idf(term: str, snapshot: Snapshot) -> float:
    """Return SQLite's inverse document frequency of an FTS5 term: almost 0 if more than half of all chunks have it."""
    n_chunks = snapshot.n_slots
    n = min(snapshot.n_chunks_with(term, MAX_COUNTED + 1), n_chunks)
    return max(_MIN_IDF, math.log((n_chunks - n + 0.5) / (n + 0.5)))


def rarity(term: str, snapshot: Snapshot) -> float:
    """Return 1 for an FTS5 term that only one chunk has, 0 for one that half of all chunks have, and values between."""
    rarest = math.log(max(1.0, (snapshot.n_slots - 0.5) / 1.5))
    return min(1.0, idf(term, snapshot) / rarest) if rarest else 1.0
