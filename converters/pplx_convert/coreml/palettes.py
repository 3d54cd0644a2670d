"""Compress matrices to indices into small palettes of float16 values, with one-dimensional k-means on histograms.

There are only 65,536 float16 values, so a group of weights is represented by a histogram. The cost of a k-means
iteration then depends on the number of distinct values, not on the size of the group.
"""

import math

import numpy as np

PALETTE_ROWS = 32  # output channels that share a palette
_N_FLOAT16 = 1 << 16
_MAX_ROUNDS = 50


def palettized(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 indices `[R, C]` and float16 palettes `[R / group, 2**bits]` for a float32 matrix `[R, C]`."""
    n_rows = len(weight)
    group = math.gcd(n_rows, PALETTE_ROWS)
    half = weight.astype(np.float16)
    indices = np.empty(weight.shape, np.uint8)
    palettes = np.empty((n_rows // group, 1 << bits), np.float16)
    for i, start in enumerate(range(0, n_rows, group)):
        rows = slice(start, start + group)
        palettes[i], index_of_bits = palette(half[rows], 1 << bits)
        indices[rows] = index_of_bits[half[rows].view(np.uint16)]
    return indices, palettes


def palette(values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the palette for a float16 array, `[size]` and sorted, and the palette index for each float16 value.

    The indices are uint8 `[65536]`, indexed by the bits of a value. The palette is found with Lloyd's algorithm on the
    distinct values and their counts. The initial centers are distributed by the cube root of the density, which is
    optimal for a smooth distribution and also gives values at the ends centers of their own.
    """
    counts = np.bincount(values.reshape(-1).view(np.uint16), minlength=_N_FLOAT16)
    bits = np.flatnonzero(counts).astype(np.uint16)
    bits = bits[np.argsort(bits.view(np.float16), kind="stable")]
    points, mass = bits.view(np.float16).astype(np.float64), counts[bits].astype(np.float64)
    centres = _lloyd(points, mass, size).astype(np.float16)
    middles = (centres[1:].astype(np.float64) + centres[:-1]) / 2
    index_of_bits = np.zeros(_N_FLOAT16, np.uint8)
    index_of_bits[bits] = np.searchsorted(middles, points)
    return centres, index_of_bits


def _lloyd(points: np.ndarray, mass: np.ndarray, size: int) -> np.ndarray:
    """Return the sorted k-means centers `[size]` of sorted, weighted points."""
    if len(points) <= size:
        return np.concatenate([points, np.full(size - len(points), points[-1])])
    total, moment = np.cumsum(mass), np.cumsum(mass * points)
    centres = _first_centres(points, mass, size)
    for _ in range(_MAX_ROUNDS):
        stops = np.searchsorted(points, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], stops, [len(points)]])
        sums = np.diff(np.concatenate([[0], total])[edges])
        moments = np.diff(np.concatenate([[0], moment])[edges])
        moved = np.divide(moments, sums, out=centres.copy(), where=sums > 0)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def _first_centres(points: np.ndarray, mass: np.ndarray, size: int) -> np.ndarray:
    """Return the initial centers: quantiles of the cube root of a histogram of the points."""
    n_bins = 4 * size
    heights, edges = np.histogram(points, bins=n_bins, weights=mass)
    share = np.concatenate([[0], np.cumsum(np.cbrt(heights))])
    return np.interp((np.arange(size) + 0.5) / size * share[-1], share, edges)
