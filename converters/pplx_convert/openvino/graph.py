"""The encoder as an OpenVINO model, built directly from the spec and the weights.

Inputs and outputs are those that optimum-intel expects: padded rows of ids and their mask in, `last_hidden_state` out.
Padding may be on either side, because rotary attention depends only on distances. Linear layers store their weights as
float16, or as int8 with one scale per output channel in the pattern that OpenVINO's CPU plugin recognizes as a
compressed weight; it multiplies them by activations that it rounds to int8 in groups of a token. The residual stream is
divided so that it fits into float16.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from pplx_convert.equalization import EqualizedCheckpoint
from pplx_edge.models.rotary import rotary_tables
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.rounding import quantize_projection, quantize_rows


@dataclass(frozen=True, slots=True)
class Tokens:
    """The inputs, and what layers need of them: the visible keys `[B, 1, 1, T]`, cosines and sines `[T, 1, d]`."""

    parameters: list[Any]
    visible: Any
    cos: Any
    sin: Any


class OpenVinoGraph:
    """Builds models from a divided checkpoint, with weights of 8 bits or in float16."""

    def __init__(self, checkpoint: EqualizedCheckpoint, *, int8: bool):
        self.checkpoint, self.spec, self.int8 = checkpoint, checkpoint.spec, int8
        self._stream_eps = checkpoint.spec.rms_norm_eps / 4**checkpoint.residual
        self._tables = [np.concatenate([t, t], axis=1) for t in rotary_tables(self.spec.max_tokens, self.spec)]

    def tokens(self) -> Tokens:
        """Return the two inputs and the values that all layers derive from them."""
        ids, mask = (_input(name) for name in ("input_ids", "attention_mask"))
        keys = op.unsqueeze(op.convert(mask, "boolean"), _ints([1, 2]))
        length = op.gather(op.shape_of(ids), _int(1), _int(0))
        positions = op.range(_int(0), length, _int(1), output_type="i64")
        cos, sin = (op.unsqueeze(op.gather(op.constant(t), positions, _int(0)), _int(1)) for t in self._tables)
        return Tokens([ids, mask], keys, cos, sin)

    def embed(self, tokens: Tokens) -> Any:
        """Return the embeddings of the ids, `[B, T, D]`."""
        name, ids = "embed_tokens.weight", tokens.parameters[0]
        if not self.int8:
            table = np.concatenate([block.astype(np.float16) for block in self.checkpoint.row_blocks(name)])
            return op.convert(op.gather(op.constant(table), ids, _int(0)), "f32")
        blocks = [quantize_rows(block) for block in self.checkpoint.row_blocks(name)]
        codes, scales = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        rows = op.convert(op.gather(op.constant(codes), ids, _int(0)), "f32")
        return op.multiply(rows, op.gather(op.constant(scales[:, None]), ids, _int(0)))

    def layer(self, index: int, x: Any, tokens: Tokens) -> Any:
        """Return the residual stream after a layer, `[B, T, D]` to `[B, T, D]`."""
        weights = self.checkpoint.layer(index)
        x = op.add(x, self._attention(self.stream_norm(x, weights["input_layernorm.weight"]), weights, tokens))
        normed = self.stream_norm(x, weights["post_attention_layernorm.weight"])
        gate = op.swish(self._linear(normed, weights["mlp.gate_proj.weight"]))
        inner = op.multiply(gate, self._linear(normed, weights["mlp.up_proj.weight"]))
        return op.add(x, self._linear(inner, weights["mlp.down_proj.weight"]))

    def stream_norm(self, x: Any, weight: np.ndarray) -> Any:
        """Return the RMS norm of the residual stream."""
        return _rms_norm(x, weight, self._stream_eps)

    def model(self) -> ov.Model:
        """Return the whole model. Its weights are in memory in the form in which they are stored."""
        tokens = self.tokens()
        x = self.embed(tokens)
        for index in range(self.spec.n_layers):
            x = self.layer(index, x, tokens)
        states = self.stream_norm(x, self.checkpoint.read("norm.weight"))
        return self.finished(states, tokens.parameters, "last_hidden_state")

    def finished(self, value: Any, inputs: list[Any], output: str) -> ov.Model:
        """Return a model with one output."""
        result = op.result(value)
        result.output(0).get_tensor().set_names({output})
        make: Any = ov.Model  # its declared types do not fit those of the operators
        return make([result], inputs, "pplx-embed")

    def _attention(self, x: Any, weights: Any, tokens: Tokens) -> Any:
        """Query heads that share a key head become additional queries of that head, so that keys are not repeated."""
        spec = self.spec
        n_kv, n_group, size = spec.n_kv_heads, spec.heads_per_kv, spec.head_dim
        q = self._heads(x, weights["self_attn.q_proj.weight"], weights["self_attn.q_norm.weight"], spec.n_heads, tokens)
        k = self._heads(x, weights["self_attn.k_proj.weight"], weights["self_attn.k_norm.weight"], n_kv, tokens)
        v = op.reshape(self._linear(x, weights["self_attn.v_proj.weight"]), _ints([0, 0, n_kv, size]), True)
        q = op.transpose(op.reshape(q, _ints([0, 0, n_kv, n_group, size]), True), _ints([0, 2, 3, 1, 4]))
        q = op.reshape(q, _ints([0, 0, -1, size]), True)  # [B, K, G * T, d]
        k, v = (op.transpose(value, _ints([0, 2, 1, 3])) for value in (k, v))
        mixed = op.scaled_dot_product_attention(q, k, v, tokens.visible)
        mixed = op.reshape(mixed, _ints([0, n_kv, n_group, -1, size]), True)
        mixed = op.reshape(op.transpose(mixed, _ints([0, 3, 1, 2, 4])), _ints([0, 0, -1]), True)
        return self._linear(mixed, weights["self_attn.o_proj.weight"])

    def _heads(self, x: Any, weight: np.ndarray, norm: np.ndarray, n_heads: int, tokens: Tokens) -> Any:
        """Return queries or keys after the projection, the norm per head and the rotation, `[B, T, heads, d]`."""
        size = self.spec.head_dim
        heads = op.reshape(self._linear(x, weight), _ints([0, 0, n_heads, size]), True)
        heads = _rms_norm(heads, norm, self.spec.rms_norm_eps)
        left, right = op.split(heads, _int(-1), 2).outputs()
        turned = op.concat([op.negative(right), left], -1)
        return op.add(op.multiply(heads, tokens.cos), op.multiply(turned, tokens.sin))

    def _linear(self, x: Any, weight: np.ndarray) -> Any:
        """Return the product of x `[..., K]` and a weight `[N, K]`."""
        if self.int8:
            codes, scales = quantize_projection(weight)
            stored = op.multiply(op.convert(op.constant(codes), "f32"), op.constant(scales[:, None]))
        else:
            stored = op.convert(op.constant(weight.astype(np.float16)), "f32")
        return op.matmul(x, stored, False, True)


def _rms_norm(x: Any, weight: np.ndarray, eps: float) -> Any:
    """Return the RMS norm over the last axis."""
    mean = op.reduce_mean(op.multiply(x, x), _int(-1), keep_dims=True)
    return op.multiply(op.divide(x, op.sqrt(op.add(mean, op.constant(np.float32(eps))))), op.constant(weight))


def states_input(spec: ModelSpec) -> Any:
    """Return an input for the residual stream, `[B, T, D]`."""
    return _input("states", "f32", [-1, -1, spec.hidden_size])


def _input(name: str, kind: str = "i64", shape: list[int] | None = None) -> Any:
    value = op.parameter(shape or [-1, -1], getattr(ov.Type, kind), name=name)
    value.output(0).get_tensor().set_names({name})
    return value


def _int(value: int) -> Any:
    return op.constant(np.int64(value))


def _ints(values: list[int]) -> Any:
    return op.constant(np.array(values, np.int64))
