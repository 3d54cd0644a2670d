"""The encoder as a Core ML function of one row, built with the MIL builder, without tracing.

All computation is float16, except that the output states and the pooling are float32. Two measures make float16 safe.
The norm first divides by the largest magnitude, because the activations of this architecture reach tens of thousands
and their squares would overflow. Rotary cosines and sines are constants, because the angles of late positions
need float32.

Queries that share a key head become additional queries of that head. `q_proj` and `o_proj` are stored with their heads
in (group, key head) order, so `[1, T, H, d]` can be reshaped to `[1, T * group, K, d]`. Keys and values are therefore
never repeated, although fused attention requires the same number of heads for all three.

Attention has two forms: one fused operator, and its parts (matmul, maximum, exp, sum, reciprocal, matmul) for systems
whose compiler rejects the fused one or moves it off the Neural Engine. The session tests both before their first use.
"""

from typing import Any

import numpy as np

from pplx_convert.coreml.mil import TARGET, Function, Var, mb, types
from pplx_convert.coreml.package import PackageWeights
from pplx_convert.coreml.weights import WeightFormat
from pplx_convert.tensors import layer_tensors
from pplx_edge.backends import coreml_io as io
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.checkpoint import Checkpoint

FINAL_NORM = "norm.weight"
_LEAST_ROOT_EPS = np.float16(2.0**-24)  # the smallest float16 above zero, so that no norm divides by zero
_LEAST = np.float16(2.0**-14)  # the smallest normal float16, the divisor for a row of zeros


def layer_output(index: int) -> str:
    """Return the name of the residual stream `[1, T, D]` after a layer."""
    return f"layer_{index}_states"


class EncoderGraph:
    """Builds the functions of one model. The weights must already be stored under their checkpoint names.

    The stored residual stream is divided by `2**residual`.
    """

    def __init__(self, spec: ModelSpec, weight_format: WeightFormat, weights: PackageWeights, residual: int = 0):
        self.spec, self.weight_format, self.weights = spec, weight_format, weights
        self.form = io.FUSED
        self.root_eps = np.float16(np.sqrt(spec.rms_norm_eps))
        self.divided_root_eps = np.maximum(np.float16(np.sqrt(spec.rms_norm_eps) / 2**residual), _LEAST_ROOT_EPS)

    def fixed(self, length: int, form: str = io.FUSED) -> Function:
        """Return a function for rows of up to `length` tokens with a form of attention.

        `rotary.{length}.*` must already be stored.
        """

        @mb.function(input_specs=self._inputs(length), opset_version=TARGET)
        def function(inputs_embeds: Var, key_bias: Var, span_weights: Var) -> tuple[Var, Var]:
            cos, sin = (self.weights.const(name) for name in rotary_names(length))
            self.form = form
            return self._encoder(inputs_embeds, key_bias, span_weights, (cos, sin))

        return function

    def _inputs(self, length: int) -> list[Any]:
        dim = self.spec.hidden_size
        return [
            mb.TensorSpec((1, length, dim), types.fp16),
            mb.TensorSpec((1, 1, 1, length), types.fp16),
            mb.TensorSpec((1, io.MAX_SPANS, length), types.fp32),
        ]

    def _encoder(self, x: Var, bias: Var, span_weights: Var, rotation: tuple[Var, Var]) -> tuple[Var, Var]:
        for index in range(self.spec.n_layers):
            x = self.layer(index, x, bias, rotation)
        states = mb.cast(x=self.norm(x, FINAL_NORM), dtype="fp32", name=io.TOKEN_STATES)
        return states, mb.matmul(x=span_weights, y=states, name=io.SPAN_MEANS)

    def layer(self, index: int, x: Var, bias: Var, rotation: tuple[Var, Var]) -> Var:
        """Add one layer: pre-norm attention and MLP, each added to the residual stream."""
        prefix = f"layers.{index}."
        normed = self.norm(x, prefix + "input_layernorm.weight")
        x = mb.add(x=x, y=self.attention(normed, prefix + "self_attn.", bias, rotation), name=f"layer_{index}_middle")
        normed = self.norm(x, prefix + "post_attention_layernorm.weight")
        return mb.add(x=x, y=self.mlp(normed, prefix + "mlp."), name=layer_output(index))

    def norm(self, x: Var, weight: str, root_eps: np.float16 | None = None) -> Var:
        """Add an RMSNorm over the last axis that does not overflow float16 for any x.

        `root_eps` is the square root of eps, by default that for the divided residual stream.

        With m = max|x|, `x / sqrt(mean(x²) + eps)` equals `(x/m) / sqrt(mean((x/m)²) + (sqrt(eps)/m)²)`. No term of
        this expression exceeds 1 except the last, which is small if m is large.
        """
        name = weight.removesuffix(".weight").replace(".", "_")
        largest = mb.reduce_max(x=mb.abs(x=x, name=f"{name}_abs"), axes=[-1], keep_dims=True, name=f"{name}_largest")
        largest = mb.maximum(x=largest, y=_LEAST, name=f"{name}_floor")
        scaled = mb.real_div(x=x, y=largest, name=f"{name}_scaled")
        squares = mb.mul(x=scaled, y=scaled, name=f"{name}_squares")
        mean = mb.reduce_mean(x=squares, axes=[-1], keep_dims=True, name=f"{name}_mean")
        root_eps = mb.real_div(
            x=self.divided_root_eps if root_eps is None else root_eps, y=largest, name=f"{name}_root_eps"
        )
        mean = mb.add(x=mean, y=mb.mul(x=root_eps, y=root_eps, name=f"{name}_eps"), name=f"{name}_mean_eps")
        unit = mb.mul(x=scaled, y=mb.rsqrt(x=mean, epsilon=np.float16(0), name=f"{name}_rsqrt"), name=f"{name}_unit")
        return mb.mul(x=unit, y=self.weights.const(weight), name=name)

    def attention(self, x: Var, prefix: str, bias: Var, rotation: tuple[Var, Var]) -> Var:
        """Add grouped-query attention from every token to every real token, `[1, T, D]` to `[1, T, D]`."""
        spec, name = self.spec, prefix.replace(".", "_")
        q = self.rotated(self.heads(x, prefix, "q", spec.n_heads), f"{name}q_rotated", rotation)  # [1, T, H, d]
        k = self.rotated(self.heads(x, prefix, "k", spec.n_kv_heads), f"{name}k_rotated", rotation)  # [1, T, K, d]
        v = mb.reshape(
            x=self.linear(x, prefix + "v_proj.weight"), shape=[1, -1, spec.n_kv_heads, spec.head_dim], name=f"{name}v"
        )
        q = mb.reshape(x=q, shape=[1, -1, spec.n_kv_heads, spec.head_dim], name=f"{name}q_grouped")  # [1, T * G, K, d]
        q, k, v = (mb.transpose(x=value, perm=[0, 2, 1, 3], name=f"{value.name}_heads") for value in (q, k, v))
        if self.form == io.FUSED:
            mixed = mb.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=bias, name=f"{name}mixed")
        else:
            mixed = self.unfused_attention(q, k, v, bias, name)
        mixed = mb.transpose(x=mixed, perm=[0, 2, 1, 3], name=f"{name}mixed_tokens")  # [1, T * G, K, d]
        mixed = mb.reshape(x=mixed, shape=[1, -1, spec.q_size], name=f"{name}mixed_row")  # [1, T, H * d]
        return self.linear(mixed, prefix + "o_proj.weight")

    def unfused_attention(self, q: Var, k: Var, v: Var, bias: Var, name: str) -> Var:
        """Add attention in parts, which compilers do not recognize as a softmax between two products."""
        q = mb.mul(x=q, y=np.float16(self.spec.head_dim**-0.5), name=f"{name}q_divided")
        scores = mb.matmul(x=q, y=k, transpose_y=True, name=f"{name}scores")  # [1, K, T * G, T]
        scores = mb.add(x=scores, y=bias, name=f"{name}scores_masked")
        largest = mb.reduce_max(x=scores, axes=[-1], keep_dims=True, name=f"{name}scores_largest")
        weights = mb.exp(x=mb.sub(x=scores, y=largest, name=f"{name}scores_below"), name=f"{name}exp")
        total = mb.reduce_sum(x=weights, axes=[-1], keep_dims=True, name=f"{name}exp_sum")
        mixed = mb.matmul(x=weights, y=v, name=f"{name}mixed_sum")
        return mb.mul(
            x=mixed, y=mb.inverse(x=total, epsilon=np.float16(0), name=f"{name}exp_share"), name=f"{name}mixed"
        )

    def heads(self, x: Var, prefix: str, which: str, n_heads: int) -> Var:
        """Return projected queries or keys, normalized per head: `[1, T, heads, d]`."""
        name = f"{prefix}{which}".replace(".", "_")
        shape = [1, -1, n_heads, self.spec.head_dim]
        split = mb.reshape(x=self.linear(x, f"{prefix}{which}_proj.weight"), shape=shape, name=f"{name}_split")
        return self.norm(split, f"{prefix}{which}_norm.weight", self.root_eps)

    def rotated(self, x: Var, name: str, rotation: tuple[Var, Var]) -> Var:
        """Return x `[1, T, heads, d]` with its halves rotated; the cosines and sines are `[1, T, 1, d/2]`."""
        cos, sin = rotation
        left, right = mb.split(x=x, num_splits=2, axis=-1, name=f"{name}_halves")
        turned_left = mb.sub(
            x=mb.mul(x=left, y=cos, name=f"{name}_left_cos"),
            y=mb.mul(x=right, y=sin, name=f"{name}_right_sin"),
            name=f"{name}_left",
        )
        turned_right = mb.add(
            x=mb.mul(x=right, y=cos, name=f"{name}_right_cos"),
            y=mb.mul(x=left, y=sin, name=f"{name}_left_sin"),
            name=f"{name}_right",
        )
        return mb.concat(values=(turned_left, turned_right), axis=-1, name=name)

    def mlp(self, x: Var, prefix: str) -> Var:
        """Add SwiGLU, `[1, T, D]` to `[1, T, D]`."""
        name = prefix.replace(".", "_")
        gate = mb.silu(x=self.linear(x, prefix + "gate_proj.weight"), name=f"{name}silu")
        inner = mb.mul(x=gate, y=self.linear(x, prefix + "up_proj.weight"), name=f"{name}inner")
        return self.linear(inner, prefix + "down_proj.weight")

    def linear(self, x: Var, weight: str) -> Var:
        """Return x times a stored matrix. A zero bias is passed because the builder would otherwise create one."""
        name = weight.removesuffix("_proj.weight").replace(".", "_") + "_projected"
        matrix = self.weight_format.matrix(self.weights, weight)
        return mb.linear(x=x, weight=matrix, bias=self.weights.zeros(matrix.shape[0], f"{name}_bias"), name=name)


def store_layer(checkpoint: Checkpoint, index: int, weight_format: WeightFormat, weights: PackageWeights) -> None:
    """Store the tensors of one layer."""
    for name, weight in layer_tensors(checkpoint, index):
        if weight.ndim == 1:
            weights.add(name, weight.astype(np.float16))
        else:
            weight_format.store(weights, name, weight)


def store_rotation(spec: ModelSpec, length: int, weights: PackageWeights) -> None:
    """Store the rotary cosines and sines of `length` positions, `[1, T, 1, d/2]` each."""
    for name, values in zip(rotary_names(length), io.rotation(spec, length), strict=True):
        weights.add(name, values)


def rotary_names(length: int) -> tuple[str, str]:
    """Return the names of the stored rotary cosines and sines for a length."""
    return f"rotary.{length}.cos", f"rotary.{length}.sin"
