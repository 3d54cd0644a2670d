"""How weights are rounded to integers: the one place that converters and the trainer's fake quantisation go by.

int8, for ONNX: one scale for each row (an output channel, or a token of the table), `round(127 * w / max|w|)`.
"""

import numpy as np

INT8_MAX = 127
TINY_SCALE = np.float32(1e-30)  # keeps the scale of an all-zero row from dividing by zero


def quantize_rows(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes `[R, C]` and float32 scales `[R]` of a float matrix, one scale a row; codes times scale is near it."""
    scales = np.maximum(np.abs(weight).max(axis=1) / np.float32(INT8_MAX), TINY_SCALE)
    return np.rint(weight / scales[:, None]).astype(np.int8), scales.astype(np.float32)
