"""Compute a native weight file in NumPy, with the integer products of the CPU kernels and attention in float32.

It is slow, independent of the kernels, and runs on every machine.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from pplx_edge.models.qwen3_numpy import rms_norm, silu, softmax
from pplx_edge.weights.native_file import COS, FINAL_NORM, SIN, TABLE, NativeWeights, codes_of, scales_of
from pplx_edge.weights.rounding import INT8_MAX, TINY_SCALE


def evaluate(weights: NativeWeights, rows: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield the states `[T, D]` of rows of ids `[T]` after the embedding, after each layer and after the final norm."""
    spec, tensors = weights.spec, weights.tensors
    scales = tensors[scales_of(TABLE)]
    states = [tensors[TABLE][ids, : spec.hidden_size] * scales[ids][:, None] for ids in rows]
    yield states
    for index in range(spec.n_layers):
        layer = _Layer(weights, index)
        states = [layer.output(x) for x in states]
        yield states
    final_norm = tensors[FINAL_NORM][: spec.hidden_size]
    yield [rms_norm(x, final_norm, spec.stream_eps) for x in states]


class _Layer:
    """One layer with its codes unpacked to float64, in which all their sums are exact."""

    def __init__(self, weights: NativeWeights, index: int):
        self.spec, prefix = weights.spec, f"layers.{index}."
        self.norms: dict[str, np.ndarray] = {}
        self.projections: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.cos, self.sin = (weights.tensors[name] for name in (COS, SIN))
        for name, shape in self.spec.layer_shapes().items():
            values, short = weights.tensors[prefix + name], name.removesuffix(".weight").split(".")[-1]
            if len(shape) == 1:
                self.norms[short] = values[: shape[0]]
            else:
                codes = codes_of(values, (shape[0], shape[1])).astype(np.float64)
                self.projections[short] = codes, weights.tensors[scales_of(prefix + name)][: shape[0]]

    def output(self, x: np.ndarray) -> np.ndarray:
        """Return the residual stream of one row after the layer, `[T, D]` to `[T, D]`."""
        eps = self.spec.stream_eps
        x = x + self.attention(rms_norm(x, self.norms["input_layernorm"], eps))
        inner = rms_norm(x, self.norms["post_attention_layernorm"], eps)
        gate, up = self.products(inner, "gate_proj", "up_proj")
        return x + self.products(silu(gate) * up, "down_proj")[0]

    def attention(self, x: np.ndarray) -> np.ndarray:
        """Apply bidirectional grouped-query attention, `[T, D]` to `[T, D]`."""
        spec, n_tokens = self.spec, len(x)
        q, k, v = (y.reshape(n_tokens, -1, spec.head_dim) for y in self.products(x, "q_proj", "k_proj", "v_proj"))
        q, k = (self.rotated(rms_norm(y, self.norms[n], spec.rms_norm_eps)) for y, n in ((q, "q_norm"), (k, "k_norm")))
        mixed = np.empty_like(q)
        for head in range(spec.n_heads):
            shared = head // spec.heads_per_kv
            scores = q[:, head] @ k[:, shared].T / np.float32(np.sqrt(spec.head_dim))
            mixed[:, head] = softmax(scores) @ v[:, shared]
        return self.products(mixed.reshape(n_tokens, spec.q_size), "o_proj")[0]

    def rotated(self, x: np.ndarray) -> np.ndarray:
        """Return x `[T, heads, head_dim]` rotated by the stored tables; token t is at position t."""
        size = len(x) * self.spec.head_dim // 2
        cos, sin = (table[:size].reshape(len(x), 1, -1) for table in (self.cos, self.sin))
        left, right = np.split(x, 2, axis=-1)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)

    def products(self, x: np.ndarray, *names: str) -> list[np.ndarray]:
        """Return the outputs of projections that read the same x `[T, K]`, rounded to int8 with a scale per token."""
        steps = np.maximum(np.abs(x).max(axis=1, keepdims=True) / np.float32(INT8_MAX), TINY_SCALE)
        activations = np.rint(x / steps).astype(np.float64)
        outputs = []
        for name in names:
            codes, scales = self.projections[name]
            outputs.append((activations @ codes.T).astype(np.float32) * scales * steps)
        return outputs
