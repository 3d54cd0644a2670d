"""Compute a model file of the CPU kernels in NumPy, with their integer products and with attention in float32.

It is slow, independent of the kernels, and runs on every machine.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pplx_edge.models.qwen3_numpy import silu, softmax
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.native_file import PANEL, Kind, map_model, stored_tensors, unpacked
from pplx_edge.weights.rounding import INT8_MAX, TINY_SCALE


def evaluate(path: Path, spec: ModelSpec, rows: Sequence[np.ndarray], bits: int = 8) -> Iterator[list[np.ndarray]]:
    """Yield the states `[T, D]` of rows of ids `[T]` after the embedding, after each layer and after the final norm.

    Computes with the padded sizes of the file, so padding that is not zero shows up in the results.
    """
    stored = stored_tensors(map_model(path, spec, bits), spec)
    table, scales = stored[Kind.TABLE, 0], stored[Kind.TABLE_SCALES, 0][0]
    states = [table[ids] * scales[ids][:, None] for ids in rows]
    yield [x[:, : spec.hidden_size] for x in states]
    for index in range(spec.n_layers):
        layer = _Layer(stored, index, spec)
        states = [layer.output(x) for x in states]
        yield [x[:, : spec.hidden_size] for x in states]
    weight = stored[Kind.FINAL_NORM, 0][0]
    yield [_norm(x, weight, spec.hidden_size, spec.stream_eps)[:, : spec.hidden_size] for x in states]


class _Layer:
    """One layer with its codes unpacked to float64, in which all their sums are exact."""

    def __init__(self, stored: Mapping[tuple[Kind, int], np.ndarray], index: int, spec: ModelSpec):
        self.spec, self.stored, self.index = spec, stored, index
        self.cos, self.sin = stored[Kind.COS, 0][:, None], stored[Kind.SIN, 0][:, None]
        self.half = self.cos.shape[2]
        self.codes = {
            kind: unpacked(stored[kind, index]).astype(np.float64)
            for kind in (Kind.QKV, Kind.O, Kind.GATE_UP, Kind.DOWN)
        }

    def output(self, x: np.ndarray) -> np.ndarray:
        """Return the residual stream of one row after the layer, `[T, D]` to `[T, D]`."""
        x = x + self.attention(self.stream_norm(x, Kind.INPUT_NORM))
        both = self.product(self.stream_norm(x, Kind.POST_NORM), Kind.GATE_UP)
        gate, up = np.moveaxis(both.reshape(len(x), -1, 2, PANEL), 2, 0).reshape(2, len(x), -1)
        return x + self.product(silu(gate) * up, Kind.DOWN)

    def attention(self, x: np.ndarray) -> np.ndarray:
        """Apply bidirectional grouped-query attention, `[T, D]` to `[T, D]`."""
        spec = self.spec
        heads = self.product(x, Kind.QKV).reshape(len(x), -1, 2 * self.half)
        q, k, v = np.split(heads, [spec.n_heads, spec.n_heads + spec.n_kv_heads], axis=1)
        q, k = self.rotated(q, Kind.Q_NORM), self.rotated(k, Kind.K_NORM)
        mixed = np.empty_like(q)
        for head in range(spec.n_heads):
            shared = head // spec.heads_per_kv
            scores = q[:, head] @ k[:, shared].T / np.float32(np.sqrt(spec.head_dim))
            mixed[:, head] = softmax(scores) @ v[:, shared]
        return self.product(mixed.reshape(len(x), -1), Kind.O)

    def rotated(self, x: np.ndarray, norm: Kind) -> np.ndarray:
        """Return x `[T, heads, head size]` normalized and rotated by the stored tables; token t is at position t."""
        x = _norm(x, self.stored[norm, self.index][0], self.spec.head_dim, self.spec.rms_norm_eps)
        cos, sin = self.cos[: len(x)], self.sin[: len(x)]
        left, right = x[..., : self.half], x[..., self.half :]
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)

    def stream_norm(self, x: np.ndarray, norm: Kind) -> np.ndarray:
        """Return x `[T, D]` normalized."""
        return _norm(x, self.stored[norm, self.index][0], self.spec.hidden_size, self.spec.stream_eps)

    def product(self, x: np.ndarray, kind: Kind) -> np.ndarray:
        """Return the output of a projection of x `[T, K]`, whose rows are rounded to int8 with a scale per token."""
        steps = np.maximum(np.abs(x).max(axis=1, keepdims=True) / np.float32(INT8_MAX), TINY_SCALE)
        activations = np.rint(x / steps).astype(np.float64)
        scales = self.stored[Kind(kind + 1), self.index][0]
        return (activations @ self.codes[kind].T).astype(np.float32) * scales * steps


def _norm(x: np.ndarray, weight: np.ndarray, size: int, eps: float) -> np.ndarray:
    """Return the root mean square norm of vectors of `size` components and padding, over the last axis."""
    mean_square = np.square(x).sum(axis=-1, keepdims=True) / np.float32(size)
    return x / np.sqrt(mean_square + np.float32(eps)) * weight
