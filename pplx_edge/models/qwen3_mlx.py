"""The bidirectional Qwen3 encoder in MLX. Parameters have the names of the checkpoint, prefixed with `model.`.

`Model` and `ModelArgs` also work with the loader of mlx-lm:
`mlx_lm.utils.load_model(path, get_model_classes=lambda config: (Model, ModelArgs))`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn

from pplx_edge.spec import ModelSpec

PREFIX = "model."
HEAD = "lm_head."  # the output layer of a language model, which an encoder does not have


@dataclass(frozen=True, slots=True)
class ModelArgs:
    """The constructor argument of `Model`, in the form that mlx-lm expects."""

    spec: ModelSpec

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "ModelArgs":
        """Return the arguments for a parsed config.json. Raises UnsupportedModel for an unimplemented setting."""
        return cls(ModelSpec.from_config(config))


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

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).reshape(B, T, self.n_heads, self.head_dim)).transpose(0, 2, 1, 3)  # [B, H, T, d]
        k = self.k_norm(self.k_proj(x).reshape(B, T, self.n_kv_heads, self.head_dim)).transpose(0, 2, 1, 3)
        v = self.v_proj(x).reshape(B, T, self.n_kv_heads, self.head_dim).transpose(0, 2, 1, 3)  # [B, K, T, d]
        mixed = mx.fast.scaled_dot_product_attention(
            self.rope(q), self.rope(k), v, scale=self.head_dim**-0.5, mask=mask
        )
        return self.o_proj(mixed.transpose(0, 2, 1, 3).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.gate_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.up_proj = nn.Linear(spec.hidden_size, spec.intermediate_size, bias=False)
        self.down_proj = nn.Linear(spec.intermediate_size, spec.hidden_size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: pre-norm attention and MLP, each added to the residual stream.

    The residual stream x is float32 for any weight type. In bfloat16, 1.5 times as many codes would change.
    """

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.self_attn = Attention(spec)
        self.mlp = MLP(spec)
        self.input_layernorm = nn.RMSNorm(spec.hidden_size, spec.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(spec.hidden_size, spec.rms_norm_eps)

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        dtype = self.input_layernorm.weight.dtype
        x = x + self.self_attn(self.input_layernorm(x).astype(dtype), mask)
        return x + self.mlp(self.post_attention_layernorm(x).astype(dtype))


class Encoder(nn.Module):
    """The embedding, the layers and the final norm."""

    def __init__(self, spec: ModelSpec):
        super().__init__()
        self.embed_tokens = nn.Embedding(spec.vocab_size, spec.hidden_size)
        self.layers = [Block(spec) for _ in range(spec.n_layers)]
        self.norm = nn.RMSNorm(spec.hidden_size, spec.rms_norm_eps)

    def states(self, ids: mx.array, mask: mx.array | None = None) -> Iterator[mx.array]:
        """Yield the states, float32 `[B, T, D]`, after the embedding, after each layer and after the final norm."""
        x = self.embed_tokens(ids).astype(mx.float32)
        yield x
        for layer in self.layers:
            x = layer(x, mask)
            yield x
        yield self.norm(x)

    def __call__(self, ids: mx.array, mask: mx.array | None = None) -> mx.array:
        *_, final = self.states(ids, mask)
        return final


class Model(nn.Module):
    """The model: takes ids `[B, T]` and a bool mask of visible tokens `[B, 1, 1, T]`, returns float32 `[B, T, D]`.

    If the mask is None, all tokens are visible.
    """

    def __init__(self, args: ModelArgs):
        super().__init__()
        self.model = Encoder(args.spec)

    def __call__(self, ids: mx.array, mask: mx.array | None = None) -> mx.array:
        return self.model(ids, mask)

    @property
    def layers(self) -> list[Block]:
        """The layers, under the name that mlx-lm expects."""
        return self.model.layers

    def sanitize(self, weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
        """Return the weights with names prefixed with `model.`, whether or not they were before, without `lm_head`."""
        return {
            PREFIX + name.removeprefix(PREFIX): tensor
            for name, tensor in weights.items()
            if not name.removeprefix(PREFIX).startswith(HEAD)
        }
