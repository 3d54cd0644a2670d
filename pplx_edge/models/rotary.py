"""The rotary angles that exported programs store as constants or receive as inputs.

The NumPy reference computes its own angles, so a mistake here shows up in the parity figures.
"""

import numpy as np

from pplx_edge.spec import ModelSpec


def rotary_angles(n_positions: int, spec: ModelSpec) -> np.ndarray:
    """Return the rotary angles `position * theta^(-2i/head_dim)`, float32 `[T, head_dim/2]`."""
    exponents = np.arange(0, spec.head_dim, 2, dtype=np.float32) / spec.head_dim
    return np.arange(n_positions, dtype=np.float32)[:, None] * (np.float32(spec.rope_theta) ** -exponents)
