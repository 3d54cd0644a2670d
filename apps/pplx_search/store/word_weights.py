"""Document frequencies of query words, and the upper bound of SQLite's BM25 for a query."""

import math

from pplx_edge.text.lexical import match_terms
from pplx_search.store.database import Database
from pplx_search.store.schema import words_table
from pplx_search.store.snapshot import Snapshot

COUNTED = 20_000  # counting stops beyond this many chunks with a word
_K1 = 1.2
_LEAST_IDF = 1e-6  # as in SQLite, for words in more than half of all chunks


def count_chunks(database: Database, snapshot: Snapshot, term: str) -> int:
    """Return the number of chunks that contain a term, at most COUNTED + 1. Cached in the snapshot."""
    if term not in snapshot.chunks_with:
        table = words_table(snapshot.generation.id)
        sql = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {table} MATCH ? LIMIT ?)"
        snapshot.chunks_with[term] = database.value(sql, (term, COUNTED + 1))
    return snapshot.chunks_with[term]


def most_bm25(database: Database, snapshot: Snapshot, words: str) -> float:
    """Return an upper bound of BM25 for a query: the limit for infinitely frequent words in an empty text.

    Words that no chunk contains count in full, although SQLite ignores them in ranking.
    """
    n_chunks = snapshot.n_slots
    counts = [min(count_chunks(database, snapshot, term), n_chunks) for term in match_terms(words)]
    return (_K1 + 1) * sum(max(_LEAST_IDF, math.log((n_chunks - n + 0.5) / (n + 0.5))) for n in counts)
