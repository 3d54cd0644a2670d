"""Similarity of vectors, chosen by dtype: cosine for int8 and float vectors, Hamming for packed bits."""

import numpy as np

from pplx_edge.errors import InputError

_EXACT_TERMS = 1024
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the similarity of every row of `a` with every row of `b`, float32 `[Na, Nb]`; higher is more similar.

    int8 codes and float means are compared by cosine; the similarity of a zero vector is 0. Packed bits (uint8) are
    compared by Hamming distance and scored as `1 - 2 * distance / bits`. This equals the cosine of the ±1 vectors, so
    the same threshold works for ±1 and packed codes. A single vector `[D]` counts as one row.

    Raises InputError if `a` and `b` differ in kind or in width.
    """
    a, b = np.atleast_2d(a), np.atleast_2d(b)
    _require_same_kind(a, b)
    return hamming_similarity(a, b) if a.dtype == np.uint8 else cosine_similarity(a, b)


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of every pair of rows, float32 `[Na, Nb]`; 0 if either row is all zeros."""
    return unit_vectors(a) @ unit_vectors(b).T


def paired_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of `a` with the same row of `b`, both `[N, D]`: float64 `[N]`; 0 for zero rows."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0)


def code_dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the exact dot product of every pair of int8 rows, float64 `[Na, Nb]`.

    Float32 sums of up to 1,024 products of codes are exact, because 127² · 1,024 is less than 2²⁴.
    """
    dots = np.zeros((len(a), len(b)))
    for start in range(0, a.shape[1], _EXACT_TERMS):
        part = slice(start, start + _EXACT_TERMS)
        dots += a[:, part].astype(np.float32) @ b[:, part].astype(np.float32).T
    return dots


def hamming_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return `1 - 2 * distance / bits` for the Hamming distance of every pair of packed rows, float32 `[Na, Nb]`."""
    bits = 8 * a.shape[1]
    distance = np.empty((len(a), len(b)), np.int64)
    for i, row in enumerate(a):
        distance[i] = np.bitwise_count(b ^ row).sum(axis=1)
    return (1 - 2 * distance / bits).astype(np.float32)


def top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the indices of the `k` highest scores of a vector, best first; equal scores keep their order."""
    if k < 0:
        raise InputError(f"k {k} is out of range: it must be 0 or more")
    return np.argsort(-scores, kind="stable")[:k]


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Return vectors `[N, D]` divided by their lengths, float32; zero vectors stay zero."""
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
    raise InputError(f"expected vectors of dtype int8, uint8, float32 or float64, got {vectors.dtype}")


def _require_same_kind(a: np.ndarray, b: np.ndarray) -> None:
    if a.ndim != 2 or b.ndim != 2:
        raise InputError(f"vectors must be [N, D] or [D], got shapes {a.shape} and {b.shape}")
    kinds = _kind(a), _kind(b)
    empty = a.dtype == b.dtype and 0 in (len(a), len(b))  # without values, ±1 and int8 codes look the same
    if kinds[0] != kinds[1] and not empty:
        raise InputError(f"cannot compare {kinds[0]} with {kinds[1]}: encode both at the same precision")
    if a.shape[1] != b.shape[1]:
        raise InputError(f"cannot compare vectors of width {a.shape[1]} and {b.shape[1]}: encode both at the same dim")
