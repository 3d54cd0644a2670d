"""Rows to padded batches and back, for peers that take rectangles of ids."""

from collections.abc import Callable, Sequence

import numpy as np

from pplx_bench.speed.peers import Encode

BATCH = 8

# ids int64 [B, T] and mask int64 [B, T] (None: nothing is padded) to mean states, float32 [B, D]
EncodePadded = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def batch_ways(encode: EncodePadded, rows: Sequence[np.ndarray]) -> dict[str, Encode]:
    """Row by row and in batches of 8, sorted by length; rows of one length also all at once."""
    sizes = {1: "row by row"}
    if len(rows) > 1:
        sizes[min(BATCH, len(rows))] = f"batches of {min(BATCH, len(rows))}"
    if len({len(row) for row in rows}) == 1 and len(rows) > BATCH:
        sizes[len(rows)] = f"one batch of {len(rows)}"
    return {name: lambda rows, size=size: encode_in_batches(encode, rows, size) for size, name in sizes.items()}


def encode_in_batches(encode: EncodePadded, rows: list[np.ndarray], size: int) -> np.ndarray:
    """Mean states `[N, D]` in the order of the rows, computed in batches of `size` rows of similar length."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    means: list[np.ndarray] = [np.empty(0, np.float32)] * len(rows)
    for start in range(0, len(rows), size):
        picked = order[start : start + size]
        for i, mean in zip(picked, encode(*padded([rows[i] for i in picked])), strict=True):
            means[i] = mean
    return np.stack(means)


def padded(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """ids `[B, T]`, padded on the right with 0, and the mask; None when no row is shorter than another."""
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    if lengths.min() == lengths.max():
        return ids, None
    return ids, (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)


def masked_means(states: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Mean over real tokens of states `[B, T, D]`, float32 `[B, D]`."""
    if mask is None:
        return states.mean(axis=1, dtype=np.float32)
    weights = mask.astype(np.float32)
    return np.einsum("btd,bt->bd", states, weights) / weights.sum(axis=1, keepdims=True)
