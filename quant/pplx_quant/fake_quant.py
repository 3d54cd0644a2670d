"""Quantisation as the converters do it, in float and with a gradient (straight-through)."""

import torch
from torch import Tensor

from pplx_edge.quantize import INT8_SCALE


def int8_straight_through(means: Tensor) -> Tensor:
    """`round(127 * tanh(mean))` of means `[..., D]` as floats of the same dtype; the gradient is that of `127 * tanh`.

    Values are integers up to rounding error: round before casting.
    """
    soft = INT8_SCALE * torch.tanh(means)
    return soft + (soft.round() - soft).detach()
