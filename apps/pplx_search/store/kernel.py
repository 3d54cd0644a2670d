"""The arithmetic of a search: Hamming distances of bits and dot products of int8 codes, exact in every kernel."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from pplx_edge.errors import InputError

_NUMPY_ROWS = 4096  # at once: what is in the processor's cache is not read from memory twice
_NO_LIMIT = int(np.iinfo(np.uint16).max)
_MORE, _SPARE = 1.5, 10  # so many times the wanted, and so many rows of a sample more, to be sure of enough
_EXACT_DIMS = 1024  # products of 127 · 127 whose float32 sum is exact in any order (below 2²⁴)


class Kernel(Protocol):
    """What computes. All kernels give the same integers."""

    name: str

    def hamming(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Bits that differ between packed bits `[W]` and each of `[N, W]`, whole numbers `[N]` of any type."""
        ...

    def dots(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Dot products of int8 codes `[D]` with each of `[N, D]`, float64 `[N]` that hold integers."""
        ...

    def squares(self, rows: np.ndarray) -> np.ndarray:
        """Dot product of each int8 row `[N, D]` with itself, float64 `[N]` that hold integers."""
        ...


class NumpyKernel:
    """Needs nothing but NumPy."""

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
    """Uses the vector instructions of the processor through NumKong, and lets go of the interpreter meanwhile."""

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
    """The kernel of a name; None takes the fastest that is installed, and `Kernel.name` tells which it is."""
    if name is None:
        try:
            return NumkongKernel()
        except ImportError:
            return NumpyKernel()
    if name not in KERNELS:
        raise InputError(f"unknown kernel {name!r}: choose one of {', '.join(KERNELS)}")
    return KERNELS[name]()


def cosines(kernel: Kernel, query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Cosine of int8 codes `[D]` with each of `[N, D]`, float64 `[N]`; 0 where either is all zeros."""
    lengths = np.sqrt(kernel.squares(rows) * kernel.squares(query[None])[0])
    return kernel.dots(query, rows) / np.where(lengths == 0, 1, lengths)


def leanings(kernel: Kernel, query: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """How far int8 codes `[D]` lean to the side that each of packed bits `[N, W]` is on, float64 `[N]`.

    The query keeps its sizes where the Hamming distance has signs on both sides, so this orders the same rows better.
    """
    ones = np.unpackbits(bits, axis=1).view(np.int8)
    wide = np.zeros(ones.shape[1], np.int8)
    wide[: len(query)] = query
    return kernel.dots(wide, ones)


class Scanner:
    """Finds the rows of a matrix of bits that are nearest to a query, in memory that does not grow with the rows."""

    block = 32_768  # rows; their distances stay in the processor's cache
    sample = 8192  # rows that tell how near the nearest are likely to be
    least_for_threads = 200_000  # rows below which a second thread costs more than it brings

    def __init__(self, kernel: Kernel, threads: int):
        self.kernel, self.threads = kernel, max(1, threads)

    def nearest(
        self, query: np.ndarray, bits: np.ndarray, count: int, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The `count` nearest rows that are `allowed` (bool `[N]`; None: all), int64, and their distances, uint16.

        Nearest first; rows at the same distance in their order.
        """
        limit = self._likely_limit(query, bits, count, allowed)
        parts = self._scan_all(query, bits, count, allowed, limit)
        if limit != _NO_LIMIT and sum(len(part.rows) for part in parts) < count:
            parts = self._scan_all(query, bits, count, allowed, _NO_LIMIT)
        return _sorted(parts, count)

    def nearest_of(
        self, query: np.ndarray, bits: np.ndarray, count: int, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `nearest`, of the given rows (int64, ascending) alone: cheaper where they are few."""
        kept = _Kept(count)
        for start in range(0, len(rows), self.block):
            some = rows[start : start + self.block]
            distances = self.kernel.hamming(query, bits[some])
            near = np.flatnonzero(distances < kept.limit)
            kept.add(some[near], distances[near])
        return _sorted([kept], count)

    def _likely_limit(self, query: np.ndarray, bits: np.ndarray, count: int, allowed: np.ndarray | None) -> int:
        """A distance that somewhat more rows than wanted are likely to be below, from rows spread over all."""
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
    """The nearest of the rows that were added so far, ascending; those at the `limit` cannot come in any more."""

    def __init__(self, count: int, limit: int = _NO_LIMIT):
        self.count, self.limit = count, limit
        self.rows, self.distances = np.zeros(0, np.int64), np.zeros(0, np.uint16)

    def add(self, rows: np.ndarray, distances: np.ndarray) -> None:
        """Takes rows that come after all before, and lets go of what is too far once twice the count is there."""
        self.rows = np.concatenate([self.rows, rows])
        self.distances = np.concatenate([self.distances, distances.astype(np.uint16)])
        if len(self.rows) > 2 * self.count:
            self.limit = int(np.partition(self.distances, self.count - 1)[self.count - 1])
            nearer = np.flatnonzero(self.distances < self.limit)
            equal = np.flatnonzero(self.distances == self.limit)[: self.count - len(nearer)]
            chosen = np.sort(np.concatenate([nearer, equal]))
            self.rows, self.distances = self.rows[chosen], self.distances[chosen]


def _sorted(parts: Sequence[_Kept], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of several parts whose rows ascend from one to the next, nearest first."""
    rows = np.concatenate([part.rows for part in parts])
    distances = np.concatenate([part.distances for part in parts])
    best = np.argsort(distances, kind="stable")[:count]
    return rows[best], distances[best]
