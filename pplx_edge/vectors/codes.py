"""Quantize mean vectors to codes: int8, ±1 and packed bits. Only this module defines the scale and the bit order.

int8 codes are `round(127 * tanh(mean))` (arXiv 2602.11151): integers from −127 to 127. Code vectors do not have unit
length, so compare them by cosine. To compute a code, the mean is compared with the 254 float32 values at which the code
changes, because the last bits of a computed tanh differ between libraries and processors. Binary codes are the sign of
the mean, where zero counts as positive. In packed codes, the first component is the most significant bit of the first
byte.
"""

import math
from collections.abc import Sequence
from typing import Any, cast, get_args

import numpy as np

from pplx_edge.errors import InputError, NumericalError
from pplx_edge.types import Precision

INT8_SCALE = 127
BITS_PER_BYTE = 8
MIN_DIM = 128


def _code_bounds() -> np.ndarray:
    """Return the smallest mean of each code from −126 to 127, float32 `[254]`, ascending."""
    exact = [math.atanh((code - 0.5) / INT8_SCALE) for code in range(1 - INT8_SCALE, INT8_SCALE + 1)]
    bounds = np.array(exact, np.float32)
    return np.where(bounds < exact, np.nextafter(bounds, np.float32(np.inf)), bounds)


CODE_BOUNDS = _code_bounds()


def quantize(means: np.ndarray, precision: Precision) -> np.ndarray:
    """Return the codes of float means `[N, D]` at a precision; `float32` returns the means themselves.

    The result is int8 `[N, D]` for `int8`, ±1 as int8 `[N, D]` for `binary`, uint8 `[N, D/8]` for `ubinary`, and
    float32 `[N, D]` for `float32`.

    Raises InputError for an unknown precision and NumericalError for NaN or infinity.
    """
    require_precision(precision)
    require_finite(means)
    return _QUANTIZERS[precision](means)


def int8_codes(means: np.ndarray) -> np.ndarray:
    """Return `round(127 * tanh(mean))` of float32 means, int8 of the same shape; the same codes on every machine."""
    below = np.searchsorted(CODE_BOUNDS, means.astype(np.float32, copy=False), side="right")
    return (below - INT8_SCALE).astype(np.int8)


def sign_codes(means: np.ndarray) -> np.ndarray:
    """Return +1 where the mean is at least 0 and −1 elsewhere, int8 of the same shape."""
    return np.where(means >= 0, 1, -1).astype(np.int8)


def packed_signs(means: np.ndarray) -> np.ndarray:
    """Return packed bits, 1 where the mean is at least 0, most significant bit first: uint8 `[N, D/8]`."""
    return np.packbits(means >= 0, axis=-1, bitorder="big")


def hosted_signs(means: np.ndarray) -> np.ndarray:
    """Return packed bits in the order of the hosted API, least significant bit first: uint8 `[N, D/8]`."""
    return np.packbits(means >= 0, axis=-1, bitorder="little")


def unpacked_signs(packed: np.ndarray) -> np.ndarray:
    """Return the bits of packed signs, uint8 `[N, W]`, as zeros and ones: int8 `[N, 8 * W]`."""
    return np.unpackbits(packed, axis=-1, bitorder="big").view(np.int8)


def truncate_dims(means: np.ndarray, dim: int | None) -> np.ndarray:
    """Return a view of the first `dim` components (Matryoshka), or of all if None. Truncate before quantizing."""
    return means if dim is None else means[..., :dim]


def require_dim(dim: int | None, native: int, precision: Precision) -> int:
    """Return the dimension to use, `native` if None. Raises InputError unless it is an integer in the valid range."""
    if dim is None:
        dim = native
    if isinstance(dim, bool) or not isinstance(dim, int | np.integer):
        raise InputError(f"dim must be an integer, got {type(dim).__name__}")
    low = min(MIN_DIM, native)
    if not low <= dim <= native:
        raise InputError(f"dim {dim} is out of range: this model allows {low} to {native}")
    if precision == "ubinary" and dim % BITS_PER_BYTE:
        raise InputError(f"dim {dim} does not fill whole bytes: ubinary needs a multiple of {BITS_PER_BYTE}")
    return int(dim)


def require_precision(precision: str) -> Precision:
    """Return the precision unchanged. Raises InputError if it is unknown."""
    if precision not in get_args(Precision):
        raise InputError(f"unknown precision {precision!r}: choose one of {', '.join(get_args(Precision))}")
    return cast(Precision, precision)


def require_finite(means: np.ndarray, labels: Sequence[Any] | None = None) -> None:
    """Raise NumericalError, naming the first row that contains NaN or infinity, by its label if labels are given."""
    finite = np.isfinite(means).all(axis=-1)
    if not finite.all():
        row = int(np.flatnonzero(~np.atleast_1d(finite))[0])
        name = labels[row] if labels is not None else f"row {row}"
        raise NumericalError(f"{name}: the model produced NaN or infinity; its weights or its backend are broken")


def _float32(means: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(means, dtype=np.float32)


_QUANTIZERS = {"int8": int8_codes, "binary": sign_codes, "ubinary": packed_signs, "float32": _float32}
