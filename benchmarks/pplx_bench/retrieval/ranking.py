"""Exact search in blocks, in bounded memory: the indices of the best passages of each query, by score and then index.

A score must depend on its two vectors only. Floating-point sums differ in their last bits with the shape of the block
and with the processor, so unit vectors are rounded to multiples of 2⁻²⁶. Sums of their products are then multiples of
2⁻⁵² below 2, which float64 represents exactly in any order. One integer key holds the score, to six decimals, and the
index, so a partial sort cannot choose among ties.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.vectors.codes import quantize, truncate_dims
from pplx_edge.vectors.similarity import similarity

SCORED_AS: dict[str, Any] = {"float32": "float32", "int8": "int8", "binary": "ubinary"}  # bits are compared packed
QUERY_BLOCK, PASSAGE_BLOCK = 256, 16384  # 32 MB of scores at once
Scores = Callable[[slice, slice], np.ndarray]  # of these queries and these passages: float [q, n]
_DECIMALS = 6
_GRID = 2.0**26
_INDEX_BITS = 28
_MAX_SCORE = 2.0 ** (62 - _INDEX_BITS) / 10**_DECIMALS


def rank_means(queries: np.ndarray, passages: np.ndarray, precision: str, k: int, dim: int | None = None) -> np.ndarray:
    """Return the ranking of float32 means after keeping the first `dim` dimensions and quantizing to a precision."""
    codes = [quantize(truncate_dims(means, dim), SCORED_AS[precision]) for means in (queries, passages)]
    return rank(codes[0], codes[1], k)


def rank(queries: np.ndarray, passages: np.ndarray, k: int) -> np.ndarray:
    """Return the indices of the `k` passages most similar to each query, best first: int64 `[Q, min(k, N)]`.

    Similarity is that of `pplx_edge.similarity`: cosine of int8 codes and floats, Hamming of packed bits. Equal scores
    are in the order of the passages. Raises InputError when queries and passages do not hold the same kind of vector.
    """
    similarity(queries[:1], passages[:1])  # raises
    scores = similarity if queries.dtype == np.uint8 else _cosines
    return rank_scores(lambda q, n: scores(queries[q], passages[n]), len(queries), len(passages), k)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of every row pair, float64 `[Na, Nb]`, the same in any block."""
    return (_whole_units(a) @ _whole_units(b).T) / _GRID**2


def _whole_units(vectors: np.ndarray) -> np.ndarray:
    """Return unit vectors in multiples of 2⁻²⁶, whole numbers in float64 `[N, D]`; zeros stay zeros."""
    vectors = vectors.astype(np.float64)
    norms = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    return np.rint(vectors * (_GRID / np.where(norms == 0, 1, norms)))


def rank_scores(scores: Scores, n_queries: int, n_passages: int, k: int) -> np.ndarray:
    """Return the indices of the `k` highest scores of each query, best first: int64 `[Q, min(k, N)]`."""
    found = np.empty((n_queries, min(k, n_passages)), np.int64)
    for q in _blocks(n_queries, QUERY_BLOCK):
        best = np.empty((q.stop - q.start, 0), np.int64)
        for n in _blocks(n_passages, PASSAGE_BLOCK):
            best = _highest(np.concatenate([best, _keys(scores(q, n), n.start)], axis=1), k)
        found[q] = -best & ((1 << _INDEX_BITS) - 1)
    return found


def _keys(scores: np.ndarray, start: int) -> np.ndarray:
    """Return an integer key for each score; a higher score, then a lower index, has the higher key."""
    highest = np.abs(scores).max(initial=0.0)
    if not highest < _MAX_SCORE:  # NaN too
        raise InputError(f"a score of {highest} cannot be ranked; the limit is {_MAX_SCORE:,.0f}: scale the scores")
    rounded = np.rint(scores.astype(np.float64) * 10**_DECIMALS).astype(np.int64)
    return (rounded << _INDEX_BITS) - np.arange(start, start + scores.shape[1])


def _highest(keys: np.ndarray, k: int) -> np.ndarray:
    """Return the `k` highest keys of each row, highest first."""
    if keys.shape[1] > k:
        keys = np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]
    return -np.sort(-keys, axis=1)


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
