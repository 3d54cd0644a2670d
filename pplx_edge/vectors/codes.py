"""Mean vectors to codes: int8, ±1 and packed bits. The only place that knows 127 and the bit order.

int8 codes are `round(127 * tanh(mean))` (arXiv 2602.11151), integers in −127…127 and not of unit length: compare them
by cosine. They are found by comparing the mean with the 254 float32 numbers at which the code changes, because the last
bits of a computed tanh differ between libraries and between processors. Binary codes are the sign of the mean, where
zero counts as positive; packed, the first component is the most significant bit of the first byte.
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
    """Return the least mean of each code from −126 to 127, float32 `[254]`, ascending."""
    exact = [math.atanh((code - 0.5) / INT8_SCALE) for code in range(1 - INT8_SCALE, INT8_SCALE + 1)]
    bounds = np.array(exact, np.float32)
    return np.where(bounds < exact, np.nextafter(bounds, np.float32(np.inf)), bounds)


CODE_BOUNDS = _code_bounds()


def quantize(means: np.ndarray, precision: Precision) -> np.ndarray:
    """Codes of float means `[N, D]` at a precision; `float32` returns the means themselves.

    int8 `[N, D]`, binary int8 ±1 `[N, D]`, ubinary uint8 `[N, D/8]`, float32 `[N, D]`.

    Raises InputError for an unknown precision, NumericalError for NaN or infinity.
    """
    require_precision(precision)
    require_finite(means)
    return _QUANTIZERS[precision](means)


def int8_codes(means: np.ndarray) -> np.ndarray:
    """Return `round(127 * tanh(mean))` of float32 means, int8 of the same shape; the same codes on every machine."""
    below = np.searchsorted(CODE_BOUNDS, means.astype(np.float32, copy=False), side="right")
    return (below - INT8_SCALE).astype(np.int8)


def sign_codes(means: np.ndarray) -> np.ndarray:
    """+1 where the mean is at least 0, else −1, int8 of the same shape."""
    return np.where(means >= 0, 1, -1).astype(np.int8)


def packed_signs(means: np.ndarray) -> np.ndarray:
    """Bit 1 where the mean is at least 0, most significant bit first: uint8 `[N, D/8]`."""
    return np.packbits(means >= 0, axis=-1, bitorder="big")


def truncate_dims(means: np.ndarray, dim: int | None) -> np.ndarray:
    """The first `dim` components (matryoshka), a view; all of them for None. Cut before quantising."""
    return means if dim is None else means[..., :dim]


def require_dim(dim: int | None, native: int, precision: Precision) -> int:
    """The dimension to use. Raises InputError unless it is an allowed integer."""
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
    """The precision itself. Raises InputError for a name that is not one."""
    if precision not in get_args(Precision):
        raise InputError(f"unknown precision {precision!r}: choose one of {', '.join(get_args(Precision))}")
    return cast(Precision, precision)


def require_finite(means: np.ndarray, labels: Sequence[Any] | None = None) -> None:
    """Raises NumericalError naming the first row with NaN or infinity (by its label when labels are given)."""
    finite = np.isfinite(means).all(axis=-1)
    if not finite.all():
        row = int(np.flatnonzero(~np.atleast_1d(finite))[0])
        name = labels[row] if labels is not None else f"row {row}"
        raise NumericalError(f"{name}: the model produced NaN or infinity; its weights or its backend are broken")


def _float32(means: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(means, dtype=np.float32)


_QUANTIZERS = {"int8": int8_codes, "binary": sign_codes, "ubinary": packed_signs, "float32": _float32}
