"""How a Core ML program keeps its matrices: float16, int8 rows, or palettes of 16, 64 or 256 values.

All are written here, from the checkpoint's own values, and not by `coremltools.optimize`. That compresses a finished
program, so it wants the whole model in memory, and its clustering takes 5 to 150 seconds a layer of the 0.6b shape;
`palettes`, which counts float16 values first, takes less than one. What is written are the operators that it would
write (`constexpr_blockwise_shift_scale`, `constexpr_lut_to_dense`), and the checks decode them from the file.
"""

from typing import Protocol

import numpy as np

from pplx_convert.coreml.mil import Var, mb, types
from pplx_convert.coreml.package import PackageWeights
from pplx_convert.coreml.palettes import palettized
from pplx_edge.weights.rounding import quantize_rows

_PALETTE_TYPES = {4: types.uint4, 6: types.uint6, 8: types.uint8}


class Precision(Protocol):
    """Stores a float32 matrix `[out, in]` in a weight file, and gives it to the function that is being authored."""

    def store(self, weights: PackageWeights, name: str, weight: np.ndarray) -> None: ...

    def matrix(self, weights: PackageWeights, name: str) -> Var: ...


class Half:
    """float16, as is."""

    def store(self, weights: PackageWeights, name: str, weight: np.ndarray) -> None:
        weights.add(name, weight.astype(np.float16))

    def matrix(self, weights: PackageWeights, name: str) -> Var:
        return weights.const(name)


class Int8Rows:
    """int8 with one float16 scale an output channel."""

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
    """Indices of 4, 6 or 8 bits into a palette of float16 values for each 32 output channels."""

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


PRECISIONS: dict[str, Precision] = {
    "coreml-fp16": Half(),
    "coreml-int8": Int8Rows(),
    "coreml-pal4": Palettes(4),
    "coreml-pal6": Palettes(6),
    "coreml-pal8": Palettes(8),
}
