"""Weight formats of matrices in a Core ML program: float16, int8 rows, or palettes of 16, 64 or 256 values.

All formats are computed here from the values of the checkpoint, not by `coremltools.optimize`, which compresses a
finished program. It needs the whole model in memory, and its clustering takes 5 to 150 seconds per layer of the 0.6b
model; `palettes` takes less than one second because it counts float16 values first. The operators are the same
(`constexpr_blockwise_shift_scale`, `constexpr_lut_to_dense`), and the parity checks decode them from the file.
"""

from typing import Protocol

import numpy as np

from pplx_convert.coreml.mil import Var, mb, types
from pplx_convert.coreml.package import PackageWeights
from pplx_convert.coreml.palettes import palettized
from pplx_edge.weights.rounding import quantize_rows

_PALETTE_TYPES = {4: types.uint4, 6: types.uint6, 8: types.uint8}


class WeightFormat(Protocol):
    """Stores a float32 matrix `[out, in]` in a weight file, and returns it as a value of the function being built."""

    def store(self, weights: PackageWeights, name: str, weight: np.ndarray) -> None: ...

    def matrix(self, weights: PackageWeights, name: str) -> Var: ...


class Float16:
    """float16 values."""

    def store(self, weights: PackageWeights, name: str, weight: np.ndarray) -> None:
        weights.add(name, weight.astype(np.float16))

    def matrix(self, weights: PackageWeights, name: str) -> Var:
        return weights.const(name)


class Int8Rows:
    """int8 codes with one float16 scale per output channel."""

    def store(self, weights: PackageWeights, name: str, weight: np.ndarray) -> None:
        codes, scales = quantize_rows(weight)
        weights.add(f"{name}.codes", codes, types.int8)
        weights.add(f"{name}.scales", scales[:, None].astype(np.float16))

    def matrix(self, weights: PackageWeights, name: str) -> Var:
        return mb.constexpr_blockwise_shift_scale(
            data=weights.const(f"{name}.codes"),
            scale=weights.const(f"{name}.scales"),
            name=name.replace(".", "_"),
        )


class Palettes:
    """Indices of 4, 6 or 8 bits into palettes of float16 values, one for every 32 output channels."""

    def __init__(self, bits: int):
        self.bits = bits

    def store(self, weights: PackageWeights, name: str, weight: np.ndarray) -> None:
        indices, palettes = palettized(weight, self.bits)
        weights.add(f"{name}.indices", indices, _PALETTE_TYPES[self.bits])
        weights.add(f"{name}.palettes", palettes[:, None, :, None])

    def matrix(self, weights: PackageWeights, name: str) -> Var:
        return mb.constexpr_lut_to_dense(
            indices=weights.const(f"{name}.indices"),
            lut=weights.const(f"{name}.palettes"),
            name=name.replace(".", "_"),
        )


WEIGHT_FORMATS: dict[str, WeightFormat] = {
    "coreml-fp16": Float16(),
    "coreml-int8": Int8Rows(),
    "coreml-pal4": Palettes(4),
    "coreml-pal6": Palettes(6),
    "coreml-pal8": Palettes(8),
}
