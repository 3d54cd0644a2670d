"""Search kernels: Hamming distances of sign bits and dot products of int8 codes, exact in every kernel."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from pplx_edge.errors import InputError

_NUMPY_ROWS = 4096  # per block, which fits into the CPU cache
_NO_LIMIT = int(np.iinfo(np.uint16).max)
_MORE, _SPARE = 1.5, 10  # factor and extra sample rows, so that the limit is rarely too low
_EXACT_DIMS = 1024  # number of products of 127 · 127 whose float32 sum is exact (below 2²⁴)


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
        sums = np.zeros(len(rows), np.float64)
        for start in range(0, rows.shape[1], _EXACT_DIMS):
            part = slice(start, start + _EXACT_DIMS)
            sums += rows[:, part].astype(np.float32) @ query[part].astype(np.float32)
        return sums

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


def leanings(kernel: Kernel, query: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Return an asymmetric score per row: the int8 query `[D]` summed over the set bits of `[N, W]`, float64 `[N]`.

    For one query, this orders rows like the dot product of the query with their signs (±1). Unlike the Hamming
    distance, it keeps the magnitudes of the query, so it ranks the same rows more accurately.
    """
    ones = np.unpackbits(bits, axis=1).view(np.int8)
    wide = np.zeros(ones.shape[1], np.int8)
    wide[: len(query)] = query
    return kernel.dots(wide, ones)


class Scanner:
    """Finds the rows of a bit matrix that are nearest to a query, with memory independent of the number of rows."""

    block = 32_768  # rows per block; their distances fit into the CPU cache
    sample = 8192  # rows sampled to estimate the distance limit
    least_for_threads = 200_000  # rows below which more threads do not pay off

    def __init__(self, kernel: Kernel, threads: int):
        self.kernel, self.threads = kernel, max(1, threads)

    def nearest(
        self, query: np.ndarray, bits: np.ndarray, count: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the `count` nearest `allowed` rows (bool `[N]`; None: all), int64, and their distances, uint16.

        The nearest row comes first; rows at the same distance keep their order.
        """
        limit = self._likely_limit(query, bits, count, allowed)
        parts = self._scan_all(query, bits, count, allowed, limit)
        if limit != _NO_LIMIT and sum(len(part.rows) for part in parts) < count:
            parts = self._scan_all(query, bits, count, allowed, _NO_LIMIT)
        return _sorted(parts, count)

    def nearest_of(
        self, query: np.ndarray, bits: np.ndarray, count: int, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Like `nearest`, but only for the given rows (int64, ascending); cheaper if there are few."""
        kept = _Kept(count)
        for start in range(0, len(rows), self.block):
            some = rows[start : start + self.block]
            distances = self.kernel.hamming(query, bits[some])
            near = np.flatnonzero(distances < kept.limit)
            kept.add(some[near], distances[near])
        return _sorted([kept], count)

    def _likely_limit(self, query: np.ndarray, bits: np.ndarray, count: int, allowed: np.ndarray | None) -> int:
        """Estimate from a sample a distance limit that somewhat more than `count` rows are below."""
        sample = np.arange(0, len(bits), max(1, len(bits) // self.sample))
        if allowed is not None:
            sample = sample[allowed[sample]]
        place = int(_MORE * count * len(sample) / max(1, len(bits) if allowed is None else np.count_nonzero(allowed)))
        if place + _SPARE >= len(sample) // 4:
            return _NO_LIMIT
        return int(np.partition(self.kernel.hamming(query, bits[sample]), place + _SPARE)[place + _SPARE]) + 1

    def _scan_all(
        self, query: np.ndarray, bits: np.ndarray, count: int, allowed: np.ndarray | None, limit: int
    ) -> "list[_Kept]":
        if self.threads == 1 or len(bits) < self.least_for_threads:
            return [self._scan(query, bits, 0, len(bits), _Kept(count, limit), allowed)]
        edges = np.linspace(0, len(bits), self.threads + 1).astype(int).tolist()
        with ThreadPoolExecutor(self.threads) as pool:
            shares = [
                pool.submit(self._scan, query, bits, start, stop, _Kept(count, limit), allowed)
                for start, stop in pairwise(edges)
            ]
            return [share.result() for share in shares]

    def _scan(
        self, query: np.ndarray, bits: np.ndarray, first: int, last: int, kept: "_Kept", allowed: np.ndarray | None
    ) -> "_Kept":
        for start in range(first, last, self.block):
            stop = min(start + self.block, last)
            distances = self.kernel.hamming(query, bits[start:stop])
            near = np.flatnonzero(distances < kept.limit)
            if allowed is not None:
                near = near[allowed[start:stop][near]]
            kept.add(near + start, distances[near])
        return kept


class _Kept:
    """The nearest rows added so far, in ascending order. Rows at or above `limit` are no longer accepted."""

    def __init__(self, count: int, limit: int = _NO_LIMIT):
        self.count, self.limit = count, limit
        self.rows, self.distances = np.zeros(0, np.int64), np.zeros(0, np.uint16)

    def add(self, rows: np.ndarray, distances: np.ndarray) -> None:
        """Add rows that follow all previous ones, and prune to `count` rows once there are more than twice as many."""
        self.rows = np.concatenate([self.rows, rows])
        self.distances = np.concatenate([self.distances, distances.astype(np.uint16)])
        if len(self.rows) > 2 * self.count:
            self.limit = int(np.partition(self.distances, self.count - 1)[self.count - 1])
            nearer = np.flatnonzero(self.distances < self.limit)
            equal = np.flatnonzero(self.distances == self.limit)[: self.count - len(nearer)]
            chosen = np.sort(np.concatenate([nearer, equal]))
            self.rows, self.distances = self.rows[chosen], self.distances[chosen]


def _sorted(parts: Sequence[_Kept], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge parts with ascending rows, and return the nearest rows, nearest first."""
    rows = np.concatenate([part.rows for part in parts])
    distances = np.concatenate([part.distances for part in parts])
    best = np.argsort(distances, kind="stable")[:count]
    return rows[best], distances[best]
