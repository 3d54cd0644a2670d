"""What speaks for the answer being among the hits of a search, in figures that mean the same in every index.

A cosine or a BM25 score alone says little: it depends on the question, on its language and on what else there is. So
each is held against what the same question gives elsewhere in the same index. A filter changes neither figure, as both
are taken of the whole index.
"""

import math
from collections.abc import Sequence

import numpy as np

from pplx_edge.lexical import match_terms
from pplx_search.store.database import Database
from pplx_search.store.kernel import Kernel, leanings
from pplx_search.store.schema import words_table
from pplx_search.store.snapshot import Snapshot
from pplx_search.store.values import Evidence, Hit, Query

FIRST_HITS = 10  # in which it is looked for
COUNTED = 20_000  # chunks with a word, beyond which they are not counted on
_SAMPLE = 1024  # rows of bits that stand for all of them
_K1 = 1.2  # of SQLite's BM25
_LEAST_IDF = 1e-6  # as in SQLite, of words that more than half of all chunks hold


def gather(database: Database, kernel: Kernel, snapshot: Snapshot, query: Query, hits: Sequence[Hit]) -> Evidence:
    """The evidence in the first of the hits, which were found for a query with a vector in this snapshot."""
    first = hits[:FIRST_HITS]
    return Evidence(
        prominence=_prominence(kernel, snapshot, query, [hit.chunk for hit in first]),
        share_of_words=_share_of_words(database, snapshot, query.words, first),
        exact=any("name" in hit.ranks or "phrase" in hit.ranks for hit in first),
    )


def count_chunks(database: Database, snapshot: Snapshot, term: str) -> int:
    """How many chunks hold a term, no more than one beyond COUNTED; remembered for the next search."""
    if term not in snapshot.chunks_with:
        table = words_table(snapshot.generation.id)
        sql = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {table} MATCH ? LIMIT ?)"
        snapshot.chunks_with[term] = database.value(sql, (term, COUNTED + 1))
    return snapshot.chunks_with[term]


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
    """BM25 of the best hit over that of a short text that is nothing but the question's words.

    Words that no chunk holds count in full: SQLite leaves them out, as they rank nothing.
    """
    n_chunks = snapshot.n_slots
    counts = [min(count_chunks(database, snapshot, term), n_chunks) for term in match_terms(words)]
    weights = (max(_LEAST_IDF, math.log((n_chunks - n + 0.5) / (n + 0.5))) for n in counts)
    most = (_K1 + 1) * sum(weights)
    return max((hit.bm25 or 0.0 for hit in hits), default=0.0) / most if most else 0.0
