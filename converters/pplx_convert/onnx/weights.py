"""Weight formats of linear layers and the embedding table in an ONNX graph: float32, int8 or int4.

int8: weights have one scale per output channel, the table has one scale per row (`pplx_edge.weights.rounding`), and
activations have one scale per token, computed at run time, so the result of a token never depends on its batch. Weights
are signed and activations unsigned with zero point 128, the combination for which ONNX Runtime uses the dot-product
instructions of x86 and Arm. Weights are scaled so that no product overflows on processors without these instructions.

int4: weights have a scale and a zero point per group of 32, for ONNX Runtime's MatMulNBits, which rounds activations to
int8 in the same groups. The table is that of int8.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pplx_convert.onnx.builder import GraphBuilder, WeightFile
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_edge.weights.rounding import INT8_MAX, TINY_SCALE, quantize_blocks, quantize_projection, quantize_rows

ZERO_POINT = 128
INT4_GROUP = 32
_INT8_ACTIVATIONS = 4  # a value of MatMulNBits' attribute accuracy_level


@dataclass(frozen=True, slots=True)
class Activations:
    """The input of a linear layer: `values` `[S, K]`, and a factor `scale` `[S, 1]` still to be applied, or ""."""

    values: str
    scale: str = ""


class WeightFormat(Protocol):
    """Stores matrices and adds the operators that use them. Values in the graph are passed and returned by name."""

    def store(self, graph: GraphBuilder, file: WeightFile, name: str, weight: np.ndarray) -> None:
        """Store a projection `[out, in]` under a name."""
        ...

    def store_table(self, graph: GraphBuilder, file: WeightFile, name: str, checkpoint: Checkpoint) -> None:
        """Store the embedding table under a name."""
        ...

    def embed(self, graph: GraphBuilder, name: str, ids: str) -> str:
        """Return rows of the table, float32 `[S, D]`."""
        ...

    def prepare(self, graph: GraphBuilder, x: str) -> Activations:
        """Return the activations for float32 x `[S, K]`, computed once for all layers that read x."""
        ...

    def linear(self, graph: GraphBuilder, x: Activations, name: str) -> str:
        """Return the product `[S, N]` without the factor `x.scale`."""
        ...


class Float32:
    """Float32 weights, transposed for the runtime."""

    def store(self, graph: GraphBuilder, file: WeightFile, name: str, weight: np.ndarray) -> None:
        graph.weight(name, weight.T, file)

    def store_table(self, graph: GraphBuilder, file: WeightFile, name: str, checkpoint: Checkpoint) -> None:
        spec = checkpoint.spec
        offset, length = file.begin(), 0
        for block in checkpoint.row_blocks(name):
            length += file.write(block)
        graph.stored_weight(name, np.dtype(np.float32), (spec.vocab_size, spec.hidden_size), file, offset, length)

    def embed(self, graph: GraphBuilder, name: str, ids: str) -> str:
        return graph.node("Gather", name, ids, axis=0)

    def prepare(self, graph: GraphBuilder, x: str) -> Activations:
        return Activations(x)

    def linear(self, graph: GraphBuilder, x: Activations, name: str) -> str:
        return graph.node("MatMul", x.values, name)


class Int8:
    """int8 weights with a scale per output channel, activations with one per token, a table with one per row."""

    def store(self, graph: GraphBuilder, file: WeightFile, name: str, weight: np.ndarray) -> None:
        codes, scales = quantize_projection(weight)
        graph.weight(name, codes.T, file)
        graph.weight(_scale_of(name), scales, file)

    def store_table(self, graph: GraphBuilder, file: WeightFile, name: str, checkpoint: Checkpoint) -> None:
        spec = checkpoint.spec
        offset, length, all_scales = file.begin(), 0, []
        for block in checkpoint.row_blocks(name):
            codes, scales = quantize_rows(block)
            length += file.write(codes)
            all_scales.append(scales)
        graph.stored_weight(name, np.dtype(np.int8), (spec.vocab_size, spec.hidden_size), file, offset, length)
        graph.weight(_scale_of(name), np.concatenate(all_scales), file)

    def embed(self, graph: GraphBuilder, name: str, ids: str) -> str:
        codes = graph.node("Gather", name, ids, axis=0)
        scales = graph.node("Gather", _scale_of(name), ids, axis=0)
        return graph.node("DequantizeLinear", codes, scales, axis=0)

    def prepare(self, graph: GraphBuilder, x: str) -> Activations:
        largest = graph.node("ReduceMax", graph.node("Abs", x), graph.constant([1]), keepdims=0)  # [S]
        step = graph.node("Mul", largest, graph.constant(1 / INT8_MAX, np.float32))
        step = graph.node("Max", step, graph.constant(TINY_SCALE, np.float32))
        zero_points = graph.once("zero_points", lambda: self._zero_points(graph, step))
        codes = graph.node("QuantizeLinear", x, step, zero_points, axis=0)
        return Activations(codes, graph.node("Unsqueeze", step, graph.constant([1])))

    def linear(self, graph: GraphBuilder, x: Activations, name: str) -> str:
        one, zero_point = graph.constant(1, np.float32), graph.constant(ZERO_POINT, np.uint8)
        return graph.fused("MatMulIntegerToFloat", x.values, name, one, _scale_of(name), zero_point)

    def _zero_points(self, graph: GraphBuilder, per_token: str) -> str:
        """Return the zero point repeated for each token: uint8 `[S]`."""
        return graph.node("Expand", graph.constant([ZERO_POINT], np.uint8), graph.node("Shape", per_token))


class Int4(Int8):
    """4-bit weights with a scale and a zero point per group, activations rounded by the operator, an int8 table."""

    def store(self, graph: GraphBuilder, file: WeightFile, name: str, weight: np.ndarray) -> None:
        n_rows, n_columns = weight.shape
        codes, scales, zeros = quantize_blocks(weight, INT4_GROUP)
        graph.weight(name, _nibbles(codes).reshape(n_rows, n_columns // INT4_GROUP, INT4_GROUP // 2), file)
        graph.weight(_scale_of(name), scales.reshape(-1), file)
        graph.weight(f"{name}_zero", _nibbles(zeros).reshape(-1), file)

    def prepare(self, graph: GraphBuilder, x: str) -> Activations:
        return Activations(x)

    def linear(self, graph: GraphBuilder, x: Activations, name: str) -> str:
        n_rows, n_groups, _ = graph.initializers[name].dims
        sizes = {
            "N": n_rows,
            "K": n_groups * INT4_GROUP,
            "bits": 4,
            "block_size": INT4_GROUP,
            "accuracy_level": _INT8_ACTIVATIONS,
        }
        return graph.fused("MatMulNBits", x.values, name, _scale_of(name), f"{name}_zero", **sizes)


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """Return pairs of 4-bit codes along the rows as bytes, the first code in the low half, uint8 `[R, ceil(C / 2)]`."""
    padded = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return padded[:, 0::2] | padded[:, 1::2] << 4


WEIGHT_FORMATS: dict[str, WeightFormat] = {"onnx-int8": Int8(), "onnx-fp32": Float32(), "onnx-int4": Int4()}


def _scale_of(name: str) -> str:
    return f"{name}_scale"
