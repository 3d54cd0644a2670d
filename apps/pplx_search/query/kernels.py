"""Search kernels: Hamming distances of sign bits and dot products of int8 codes, exact in every kernel."""

from typing import Any, Protocol

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.vectors.codes import packed_signs, unpacked_signs
from pplx_edge.vectors.similarity import code_dots

_NUMPY_ROWS = 4096  # per block, which fits into the CPU cache


class Kernel(Protocol):
    """The operations of a search kernel. All kernels return the same integers."""

    name: str

    def hamming(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the Hamming distance of packed bits `[W]` to each row of `[N, W]`: integers `[N]` of any type."""
        ...

    def dots(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the dot product of int8 codes `[D]` with each row of `[N, D]`: integers as float64 `[N]`."""
        ...

    def squares(self, rows: np.ndarray) -> np.ndarray:
        """Return the dot product of each int8 row `[N, D]` with itself: integers as float64 `[N]`."""
        ...


class NumpyKernel:
    """A kernel that only needs NumPy."""

    name = "numpy"

    def hamming(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `Kernel`."""
        words = np.uint64 if rows.shape[1] % 8 == 0 else np.uint8
        wide, row = rows.view(words), query.view(words)
        distances = np.empty(len(rows), np.uint16)
        for start in range(0, len(rows), _NUMPY_ROWS):
            block = np.bitwise_count(wide[start : start + _NUMPY_ROWS] ^ row)
            distances[start : start + _NUMPY_ROWS] = block.sum(axis=1, dtype=np.uint16)
        return distances

    def dots(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `Kernel`."""
        return code_dots(rows, query[None])[:, 0]

    def squares(self, rows: np.ndarray) -> np.ndarray:
        """See `Kernel`."""
        wide = rows.astype(np.int32)
        return np.einsum("nd,nd->n", wide, wide).astype(np.float64)


class NumkongKernel:
    """A kernel that uses the SIMD instructions of the CPU through NumKong, and releases the GIL."""

    name = "numkong"

    def __init__(self) -> None:
        import numkong

        self._numkong: Any = numkong

    def hamming(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `Kernel`."""
        if not len(rows):
            return np.zeros(0)
        return np.asarray(self._numkong.cdist(query[None], rows, "hamming", dtype="uint1"))[0]

    def dots(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `Kernel`."""
        if not len(rows):
            return np.zeros(0)
        return np.asarray(self._numkong.cdist(query[None], rows, "dot"))[0]

    def squares(self, rows: np.ndarray) -> np.ndarray:
        """See `Kernel`."""
        if not len(rows):
            return np.zeros(0)
        return np.asarray(self._numkong.dot(rows, rows), dtype=np.float64).reshape(len(rows))


KERNELS = {"numkong": NumkongKernel, "numpy": NumpyKernel}


def open_kernel(name: str | None = None) -> Kernel:
    """Return a kernel by name. None selects the fastest installed kernel; see `Kernel.name` for which."""
    if name is None:
        try:
            return NumkongKernel()
        except ImportError:
            return NumpyKernel()
    if name not in KERNELS:
        raise InputError(f"unknown kernel {name!r}; choose one of {', '.join(KERNELS)}")
    return KERNELS[name]()


def cosines(kernel: Kernel, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the cosine of int8 codes `[D]` with each row of `[N, D]`, float64 `[N]`; 0 if either is all zeros."""
    lengths = np.sqrt(kernel.squares(rows) * kernel.squares(query[None])[0])
    return kernel.dots(query, rows) / np.where(lengths == 0, 1, lengths)


def asymmetric_scores(kernel: Kernel, query: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Return the sum of the int8 query `[D]` over the set bits of each packed row of `[N, W]`, float64 `[N]`.

    For one query, this orders rows like the dot product of the query with their signs (±1). It keeps the magnitudes of
    the query, so it orders rows more accurately than the Hamming distance does.
    """
    ones = unpacked_signs(bits)
    wide = np.zeros(ones.shape[1], np.int8)
    wide[: len(query)] = query
    return kernel.dots(wide, ones)


def row_bytes(dim: int) -> int:
    """Return the bytes per row of sign bits: whole words of 8 bytes, so that rows can be compared word by word."""
    return -(-dim // 64) * 8


def signs(codes: np.ndarray) -> np.ndarray:
    """Return the packed signs of int8 codes `[N, D]`, zero-padded to whole words, uint8 `[N, row_bytes]`."""
    rows = np.zeros((len(codes), row_bytes(codes.shape[1])), np.uint8)
    packed = packed_signs(codes)
    rows[:, : packed.shape[1]] = packed
    return rows
