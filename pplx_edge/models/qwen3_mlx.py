"""The bidirectional Qwen3 encoder in MLX. Parameters have the names of the checkpoint, prefixed with `model.`.

`Model` and `ModelArgs` also work with the loader of mlx-lm:
`mlx_lm.utils.load_model(path, get_model_classes=lambda config: (Model, ModelArgs))`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

from pplx_edge.models.mlx_add_norm import fused_add_norm
from pplx_edge.spec import ModelSpec

PREFIX = "model."
HEAD = "lm_head."  # the output layer of a language model, which an encoder does not have
_STREAM_NORMS = ("input_layernorm", "post_attention_layernorm", "norm")


@dataclass(frozen=True, slots=True)
class ModelArgs:
    """The constructor argument of `Model`, in the form that mlx-lm expects."""

    spec: ModelSpec

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "ModelArgs":
        """Return the arguments for a parsed config.json. Raises UnsupportedModel for an unimplemented setting."""
        return cls(ModelSpec.from_config(config))


@dataclass(frozen=True, slots=True)
class Rows:
    """The layout of `B` packed rows: all their tokens one after the other, `[S]`, and padded to `[B, T]` for attention.

    Only attention needs to know which tokens are in the same row. Everything else runs on the packed tokens, without
    padding. The arrays are None if all rows have `T` tokens.
    """

    n_rows: int
    length: int
    padded: mx.array | None = None  # [B * T], the packed token at each place, any token at padding
    packed: mx.array | None = None  # [S], the place of each packed token
    mask: mx.array | None = None  # bool [B, 1, 1, T], False at padding

    @classmethod
    def of_lengths(cls, lengths: Sequence[int]) -> "Rows":
        """Return the layout of rows with these numbers of tokens."""
        n_rows, length = len(lengths), max(lengths)
        if min(lengths) == length:
            return cls(n_rows, length)
        real = np.arange(length) < np.array(lengths)[:, None]  # [B, T]
        padded = np.zeros(n_rows * length, np.int32)
        packed = np.flatnonzero(real).astype(np.int32)
        padded[packed] = np.arange(len(packed))
        mask = np.zeros((n_rows, 1, 1, length), bool)
        mask[:, 0, 0] = real
        return cls(n_rows, length, mx.array(padded), mx.array(packed), mx.array(mask))

    def spread(self, heads: mx.array) -> mx.array:
        """Pad heads of packed tokens: `[S, H, d]` to `[B, H, T, d]`."""
        heads = heads if self.padded is None else heads[self.padded]
        return heads.reshape(self.n_rows, self.length, *heads.shape[1:]).transpose(0, 2, 1, 3)

    def join(self, heads: mx.array) -> mx.array:
        """Remove the padding: `[B, H, T, d]` to `[S, H * d]`."""
        flat = heads.transpose(0, 2, 1, 3).reshape(self.n_rows * self.length, -1)
        return flat if self.packed is None else flat[self.packed]


class Attention(nn.Module):
    """Grouped-query attention without a causal mask; q and k are normalized per head before the rotation."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = spec.n_heads, spec.n_kv_heads, spec.head_dim
        self.q_proj = nn.Linear(spec.hidden_size, spec.q_size, bias=False)
        self.k_proj = nn.Linear(spec.hidden_size, spec.kv_size, bias=False)
        self.v_proj = nn.Linear(spec.hidden_size, spec.kv_size, bias=False)
        self.o_proj = nn.Linear(spec.q_size, spec.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(spec.head_dim, spec.rms_norm_eps)
        self.k_norm = nn.RMSNorm(spec.head_dim, spec.rms_norm_eps)
        self.rope = nn.RoPE(spec.head_dim, traditional=False, base=spec.rope_theta)

    def __call__(self, x: mx.array, rows: Rows) -> mx.array:
        q = rows.spread(self.q_norm(self.q_proj(x).reshape(-1, self.n_heads, self.head_dim)))  # [B, H, T, d]
        k = rows.spread(self.k_norm(self.k_proj(x).reshape(-1, self.n_kv_heads, self.head_dim)))
        v = rows.spread(self.v_proj(x).reshape(-1, self.n_kv_heads, self.head_dim))  # [B, K, T, d]
        mixed = mx.fast.scaled_dot_product_attention(
            self.rope(q), self.rope(k), v, scale=self.head_dim**-0.5, mask=rows.mask
        )
        return self.o_proj(rows.join(mixed))


class MLP(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(_gated(self.gate_proj(x), self.up_proj(x)))


class StreamNorm(nn.RMSNorm):
    """A norm of the residual stream, with float32 weights; `fused` selects our kernel, which needs Metal."""

    fused = False

    def add(self, x: mx.array, y: mx.array | None, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
        """Return `x + y`, and its norm in another type; x is float32, and y, in any type, may be None for zero."""
        if self.fused and y is not None and dtype != mx.float32:
            return fused_add_norm(x, y, self.weight, self.eps, dtype)
        x = x if y is None else _added(x, y)
        return x, self(x).astype(dtype)


class Block(nn.Module):
    """One layer: pre-norm attention and MLP, each added to the residual stream.

    The residual stream x is float32 for any weight type. In bfloat16, 1.5 times as many codes would change. Its norms
    have float32 weights, because MLX would convert weights of another type in every call.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.self_attn = Attention(spec)
        self.mlp = MLP(spec)
        self.input_layernorm = StreamNorm(spec.hidden_size, spec.stream_eps)
        self.post_attention_layernorm = StreamNorm(spec.hidden_size, spec.stream_eps)

    def __call__(self, x: mx.array, pending: mx.array | None, rows: Rows) -> tuple[mx.array, mx.array]:
        """Return the stream and the term to add to it, given the stream and the term that the last layer added."""
        dtype = self.self_attn.q_norm.weight.dtype  # that of all products
        x, normed = self.input_layernorm.add(x, pending, dtype)
        x, normed = self.post_attention_layernorm.add(x, self.self_attn(normed, rows), dtype)
        return x, self.mlp(normed)


class Encoder(nn.Module):
    """The embedding, the layers and the final norm."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = [Block(spec) for _ in range(spec.n_layers)]
        self.norm = StreamNorm(spec.hidden_size, spec.stream_eps)

    def states(self, ids: mx.array, rows: Rows) -> Iterator[mx.array]:
        """Yield the states, float32 `[S, D]`, after the embedding, after each layer and after the final norm.

        `ids` are those of all rows, packed `[S]`. States that the caller does not evaluate cost nothing.
        """
        x, pending = self.embed_tokens(ids).astype(mx.float32), None
        yield x
        for layer in self.layers:
            x, pending = layer(x, pending, rows)
            yield x + pending
        yield self.norm.add(x, pending, mx.float32)[1]

    def __call__(self, ids: mx.array, rows: Rows) -> mx.array:
        *_, final = self.states(ids, rows)
        return final


class Model(nn.Module):
    """The model: takes ids `[B, T]` without padding and returns the final states, float32 `[B, T, D]`."""

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.model = Encoder(args.spec)

    def __call__(self, ids: mx.array) -> mx.array:
        n_rows, length = ids.shape
        return self.model(ids.reshape(-1), Rows(n_rows, length)).reshape(n_rows, length, -1)

    @property
    def layers(self) -> list[Block]:
        """The layers, under the name that mlx-lm expects."""
        return self.model.layers

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Return the weights under our names: prefixed with `model.`, whether or not they were before.

        There is no `lm_head`, and the weights of norms of the residual stream are float32.
        """
        named = {PREFIX + name.removeprefix(PREFIX): tensor for name, tensor in weights.items()}
        return {
            name: tensor.astype(mx.float32) if is_stream_norm(name) else tensor
            for name, tensor in named.items()
            if not name.startswith(PREFIX + HEAD)
        }


def is_stream_norm(name: str) -> bool:
    """Return whether a tensor is the weight of a norm of the residual stream, which stays in float32."""
    return name.removesuffix(".weight").rpartition(".")[2] in _STREAM_NORMS


# Compiled for all shapes at once: each is one Metal kernel instead of two, and no new shape needs another compilation.


@partial(mx.compile, shapeless=True)
def _added(x: mx.array, y: mx.array) -> mx.array:
    return x + y


@partial(mx.compile, shapeless=True)
def _gated(gate: mx.array, up: mx.array) -> mx.array:
    return nn.silu(gate) * up
