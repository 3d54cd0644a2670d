"""The rotary cosines and sines that exported programs store as constants or receive as inputs.

They are the same bits on every machine: angles are products of float32 numbers, as in transformers, and their cosines
and sines are computed with additions and multiplications only. The functions of NumPy and of C libraries differ in the
last bit between processors. The NumPy reference computes its own angles, so a mistake here shows up in the parity
figures.
"""

from decimal import Decimal, localcontext

import numpy as np

from pplx_edge.spec import ModelSpec

# π/2 as a sum of three numbers. The first two have 33 significant bits, so their multiples below 2**20 are exact.
_HALF_PI = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21)
_COS_TERMS = (1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800, 1 / 479001600, -1 / 87178291200)
_SIN_TERMS = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800, -1 / 1307674368000)


def rotary_tables(n_positions: int, spec: ModelSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines and sines of the angles `position * theta^(-2i/head_dim)`, float32 `[T, head_dim/2]` each."""
    with localcontext(prec=40):
        theta, size = Decimal(spec.rope_theta), spec.head_dim
        frequencies = np.array([float(theta ** (-Decimal(i) / size)) for i in range(0, size, 2)], np.float32)
    angles = np.arange(n_positions, dtype=np.float32)[:, None] * frequencies
    return _cos_sin(angles.astype(np.float64))


def _cos_sin(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosines and sines of float64 angles below a million, rounded to float32."""
    turns = np.rint(angles * (2 / np.pi))
    rest = angles
    for part in _HALF_PI:
        rest = rest - turns * part
    square = rest * rest
    cos, sin = _polynomial(square, _COS_TERMS), _polynomial(square, _SIN_TERMS) * rest
    quadrant = turns.astype(np.int64) % 4
    cosines = np.choose(quadrant, (cos, -sin, -cos, sin))
    sines = np.choose(quadrant, (sin, cos, -sin, -cos))
    return cosines.astype(np.float32), sines.astype(np.float32)


def _polynomial(x: np.ndarray, terms: tuple[float, ...]) -> np.ndarray:
    total = np.full_like(x, terms[-1])
    for term in reversed(terms[:-1]):
        total = total * x + term
    return total
