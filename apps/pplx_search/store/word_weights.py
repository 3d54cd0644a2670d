"""How much a question's words weigh in an index, by SQLite's BM25."""

import math

from pplx_edge.text.lexical import match_terms
from pplx_search.store.database import Database
from pplx_search.store.schema import words_table
from pplx_search.store.snapshot import Snapshot

COUNTED = 20_000  # chunks with a word, beyond which they are not counted on
_K1 = 1.2
_LEAST_IDF = 1e-6  # as in SQLite, of words that more than half of all chunks hold


def count_chunks(database: Database, snapshot: Snapshot, term: str) -> int:
    """How many chunks hold a term, no more than one beyond COUNTED; remembered for the next search."""
    if term not in snapshot.chunks_with:
        table = words_table(snapshot.generation.id)
        sql = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {table} MATCH ? LIMIT ?)"
        snapshot.chunks_with[term] = database.value(sql, (term, COUNTED + 1))
    return snapshot.chunks_with[term]


def most_bm25(database: Database, snapshot: Snapshot, words: str) -> float:
    """What no chunk's BM25 can exceed: each word as often as can be in a text of no length.

    Words that no chunk holds count in full: SQLite leaves them out, as they rank nothing.
    """
    n_chunks = snapshot.n_slots
    counts = [min(count_chunks(database, snapshot, term), n_chunks) for term in match_terms(words)]
    return (_K1 + 1) * sum(max(_LEAST_IDF, math.log((n_chunks - n + 0.5) / (n + 0.5))) for n in counts)
