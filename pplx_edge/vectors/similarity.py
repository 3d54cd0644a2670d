"""How alike vectors are: cosine for int8 and float vectors, Hamming for bits; chosen by the arrays' own types."""

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

from pplx_edge.errors import InputError

_T = TypeVar("_T", bound=Hashable)
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_FUSION_K = 60  # as in the paper


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Similarity of every row of `a` with every row of `b`, float32 `[Na, Nb]`, higher is more alike.

    int8 codes and float means are compared by cosine; a zero vector is unlike everything (0). Packed bits (uint8) are
    compared by Hamming distance, given as `1 - 2 * distance / bits`, which is the cosine of the ±1 vectors, so that
    one threshold means the same for ±1 and packed codes. A single vector `[D]` counts as one row.

    Raises InputError when the two do not hold the same kind of vector or do not have the same width.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    _require_same_kind(a, b)
    return hamming_similarity(a, b) if a.dtype == np.uint8 else cosine_similarity(a, b)


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of every row pair, float32 `[Na, Nb]`; 0 where either row is all zeros."""
    return _unit(a) @ _unit(b).T


def hamming_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`1 - 2 * Hamming / bits` of every pair of packed rows, float32 `[Na, Nb]`."""
    bits = 8 * a.shape[1]
    distance = np.empty((len(a), len(b)), np.int64)
    for i, row in enumerate(a):
        distance[i] = np.bitwise_count(b ^ row).sum(axis=1)
    return (1 - 2 * distance / bits).astype(np.float32)


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the `k` highest scores of a vector, best first; equal scores keep their order."""
    if k < 0:
        raise InputError(f"k {k} is out of range: how many of the best are wanted, 0 or more")
    return np.argsort(-scores, kind="stable")[:k]


def reciprocal_rank_fusion(rankings: Sequence[Sequence[_T]], k: int = _FUSION_K) -> list[_T]:
    """The items of several rankings in one, best first: each has the sum of `1 / (k + rank)` over those that name it.

    Ranks count from 1. Equal sums keep the order in which the rankings, one after another, name the items. The formula
    is that of Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion", SIGIR 2009.
    """
    sums: dict[_T, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, start=1):
            sums[item] = sums.get(item, 0.0) + 1 / (k + rank)
    return sorted(sums, key=lambda item: -sums[item])


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)


def _kind(vectors: np.ndarray) -> str:
    if vectors.dtype == np.uint8:
        return "packed bits"
    if vectors.dtype in _FLOATS:
        return "float means"
    if vectors.dtype == np.int8:
        signs = vectors.size > 0 and bool((np.abs(vectors) == 1).all())
        return "±1 codes" if signs else "int8 codes"
    raise InputError(f"vectors of dtype {vectors.dtype} are not embeddings: int8, uint8, float32 or float64 are")


def _require_same_kind(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2:
        raise InputError(f"vectors must be [N, D] or [D], got shapes {a.shape} and {b.shape}")
    kinds = _kind(a), _kind(b)
    empty = a.dtype == b.dtype and 0 in (len(a), len(b))  # ±1 and int8 codes are told apart by their values
    if kinds[0] != kinds[1] and not empty:
        raise InputError(f"cannot compare {kinds[0]} with {kinds[1]}: encode both at the same precision")
    if a.shape[1] != b.shape[1]:
        raise InputError(f"cannot compare vectors of width {a.shape[1]} and {b.shape[1]}: encode both at the same dim")
