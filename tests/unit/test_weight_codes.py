"""Rounding of weights: within half a step, never out of range, nothing special about zeros."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pplx_edge.weight_codes import quantize_rows


@given(hnp.arrays(np.float32, (5, 9), elements=st.floats(-1e4, 1e4, width=32)))
def test_quantized_rows_are_within_half_a_step(weight: np.ndarray) -> None:
    codes, scales = quantize_rows(weight)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max(initial=0) <= 127
    restored = codes.astype(np.float64) * scales[:, None]
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert (np.abs(restored - weight) <= 0.5 * step + 1e-6 * np.abs(weight) + 1e-29).all()
