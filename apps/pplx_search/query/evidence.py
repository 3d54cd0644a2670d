"""Evidence that the hits answer the query, as figures that are comparable between indexes.

A cosine or BM25 score depends on the query, its language and the other documents in the index. The evidence therefore
relates each score to the same query's scores in the rest of the index. A filter has no effect on the figures, because
they use the whole index.
"""

from collections.abc import Sequence

import numpy as np

from pplx_search.ids import ChunkId
from pplx_search.query.bm25 import bm25_bound
from pplx_search.query.fusion import NAME, PHRASE
from pplx_search.query.kernels import Kernel, asymmetric_scores
from pplx_search.query.snapshot import Snapshot
from pplx_search.query.types import Evidence, Query, RankedChunk

FIRST_HITS = 10  # hits that count as evidence
_SAMPLE = 1024  # rows of the bits file that represent all rows


def evidence_of(query: Query, ranked: Sequence[RankedChunk], snapshot: Snapshot, kernel: Kernel) -> Evidence:
    """Return the evidence in the first chunks of a ranking of this snapshot."""
    first = ranked[:FIRST_HITS]
    return Evidence(
        cosine_z=_cosine_z(query, [chunk.chunk_id for chunk in first], snapshot, kernel),
        bm25_share=_bm25_share(query, first, snapshot),
        exact=any(NAME in chunk.ranks or PHRASE in chunk.ranks for chunk in first),
    )


def _cosine_z(query: Query, chunk_ids: Sequence[ChunkId], snapshot: Snapshot, kernel: Kernel) -> float | None:
    """Return the z-score of the best chunk among the asymmetric scores of an evenly spaced sample of the index.

    Asymmetric scores stand in for cosines, because they only need the sign bits.
    """
    if query.codes is None or not chunk_ids:
        return None
    sample = np.unique(np.linspace(0, snapshot.n_slots - 1, min(snapshot.n_slots, _SAMPLE)).astype(np.int64))
    slots = np.concatenate([snapshot.slots_of(np.array(chunk_ids, np.int64)), sample])
    scores = asymmetric_scores(kernel, query.codes, snapshot.bits[slots])
    best, others = scores[: len(chunk_ids)].max(), scores[len(chunk_ids) :]
    std = others.std()
    return float((best - others.mean()) / std) if std else 0.0


def _bm25_share(query: Query, ranked: Sequence[RankedChunk], snapshot: Snapshot) -> float:
    """Return the highest BM25 of the chunks, divided by its upper bound."""
    bound = bm25_bound(query.words, snapshot)
    return max((chunk.bm25 or 0.0 for chunk in ranked), default=0.0) / bound if bound else 0.0
