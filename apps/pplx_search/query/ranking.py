"""Rank the chunks of an index: run the legs, add what they lack, and fuse them."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice

import numpy as np

from pplx_search.ids import ChunkId, TextId
from pplx_search.query.bm25 import bm25_bound
from pplx_search.query.fusion import Legs, best_chunks, fuse
from pplx_search.query.kernels import Kernel, cosines
from pplx_search.query.legs import dense_leg, named_texts, phrase_leg, word_leg
from pplx_search.query.scanner import Scanner
from pplx_search.query.snapshot import Snapshot
from pplx_search.query.types import Query, RankedChunk

_COMPARED = 256  # top chunks of each other leg that also get an exact cosine


def rank(query: Query, snapshot: Snapshot, scanner: Scanner) -> list[RankedChunk]:
    """Return the best `k` chunks that pass the filter, best first.

    Raises InputError if the query vector has the wrong dimension.
    """
    return best_chunks(legs_of(query, snapshot, scanner), query.k)


def legs_of(query: Query, snapshot: Snapshot, scanner: Scanner) -> Legs:
    """Return what each leg finds among the chunks that pass the filter. Raises InputError like `rank`."""
    passing = snapshot.passing(query.filter)
    legs = Legs(
        dense=dense_leg(query, snapshot, passing, scanner),
        words=word_leg(query, snapshot, passing),
        phrase=phrase_leg(query, snapshot, passing),
        bm25_bound=bm25_bound(query.words, snapshot),
    )
    if named := named_texts(query, snapshot, passing):
        legs = replace(legs, name=_best_chunk_of_each(named, fuse(legs), snapshot))
    if query.codes is not None:
        legs = replace(legs, other_cosines=_other_cosines(query.codes, legs, snapshot, scanner.kernel))
    return legs


def _best_chunk_of_each(text_ids: Iterable[TextId], ranked: Iterable[ChunkId], snapshot: Snapshot) -> list[ChunkId]:
    """Return the best ranked chunk of each text, or else its first chunk; texts without chunks are left out."""
    chunk_ids = list(ranked)
    best: dict[TextId, ChunkId] = {}
    for text_id, chunk_id in zip(snapshot.text_ids_of(np.array(chunk_ids, np.int64)).tolist(), chunk_ids, strict=True):
        best.setdefault(text_id, chunk_id)
    chosen = (best.get(text_id) or snapshot.first_chunk(text_id) for text_id in text_ids)
    return [chunk_id for chunk_id in chosen if chunk_id is not None]


def _other_cosines(codes: np.ndarray, legs: Legs, snapshot: Snapshot, kernel: Kernel) -> dict[ChunkId, float]:
    """Return the exact cosines of the top chunks of each leg that the dense leg did not find."""
    top = (chunk_id for leg in legs.by_name().values() for chunk_id in islice(leg, _COMPARED))
    missing = [chunk_id for chunk_id in dict.fromkeys(top) if chunk_id not in legs.dense]
    if not missing:
        return {}
    scores = cosines(kernel, np.ascontiguousarray(codes), snapshot.codes(np.array(missing, np.int64)))
    return dict(zip(missing, scores.tolist(), strict=True))
