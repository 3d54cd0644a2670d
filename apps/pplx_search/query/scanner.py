"""Scan the sign bits of an index for the rows nearest to a query."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from pplx_search.query.kernels import Kernel

_NO_LIMIT = int(np.iinfo(np.uint16).max)
_FACTOR, _EXTRA = 1.5, 10  # more sample rows than needed, so that the limit is rarely too low


class Scanner:
    """Finds the rows of a bit matrix that are nearest to a query, with memory independent of the number of rows."""

    block = 32_768  # rows per block; their distances fit into the CPU cache
    sample = 8192  # rows sampled to estimate the distance limit
    min_rows_for_threads = 200_000  # rows below which more threads do not pay off

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
        kept = _NearestRows(count)
        for start in range(0, len(rows), self.block):
            candidates = rows[start : start + self.block]
            distances = self.kernel.hamming(query, bits[candidates])
            near = np.flatnonzero(distances < kept.limit)
            kept.add(candidates[near], distances[near])
        return _sorted([kept], count)

    def _likely_limit(self, query: np.ndarray, bits: np.ndarray, count: int, allowed: np.ndarray | None) -> int:
        """Return a distance, estimated from a sample, that somewhat more than `count` rows are below."""
        sample = np.arange(0, len(bits), max(1, len(bits) // self.sample))
        if allowed is not None:
            sample = sample[allowed[sample]]
        rank = int(_FACTOR * count * len(sample) / max(1, len(bits) if allowed is None else np.count_nonzero(allowed)))
        if rank + _EXTRA >= len(sample) // 4:
            return _NO_LIMIT
        return int(np.partition(self.kernel.hamming(query, bits[sample]), rank + _EXTRA)[rank + _EXTRA]) + 1

    def _scan_all(
        self, query: np.ndarray, bits: np.ndarray, count: int, allowed: np.ndarray | None, limit: int
    ) -> "list[_NearestRows]":
        if self.threads == 1 or len(bits) < self.min_rows_for_threads:
            return [self._scan(query, bits, 0, len(bits), _NearestRows(count, limit), allowed)]
        edges = np.linspace(0, len(bits), self.threads + 1).astype(int).tolist()
        with ThreadPoolExecutor(self.threads) as pool:
            shares = [
                pool.submit(self._scan, query, bits, start, stop, _NearestRows(count, limit), allowed)
                for start, stop in pairwise(edges)
            ]
            return [share.result() for share in shares]

    def _scan(
        self,
        query: np.ndarray,
        bits: np.ndarray,
        first: int,
        last: int,
        kept: "_NearestRows",
        allowed: np.ndarray | None,
    ) -> "_NearestRows":
        for start in range(first, last, self.block):
            stop = min(start + self.block, last)
            distances = self.kernel.hamming(query, bits[start:stop])
            near = np.flatnonzero(distances < kept.limit)
            if allowed is not None:
                near = near[allowed[start:stop][near]]
            kept.add(near + start, distances[near])
        return kept


class _NearestRows:
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


def _sorted(parts: Sequence[_NearestRows], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Merge parts with ascending rows, and return the nearest rows, nearest first."""
    rows = np.concatenate([part.rows for part in parts])
    distances = np.concatenate([part.distances for part in parts])
    best = np.argsort(distances, kind="stable")[:count]
    return rows[best], distances[best]
