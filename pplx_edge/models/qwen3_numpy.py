"""The bidirectional Qwen3 encoder in plain NumPy, float32, one row and one layer at a time.

It is slow but simple, and it is the reference for every conversion. Weights are read layer by layer from the
checkpoint, so at most one layer is in memory at a time.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pplx_edge.spec import ModelSpec
from pplx_edge.weights.checkpoint import Checkpoint

Weights = Mapping[str, np.ndarray]


def encode_rows(checkpoint: Checkpoint, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the final states, float32 `[T, D]`, of each row of ids `[T]`; T must be at least 1."""
    *_, states = layer_states(checkpoint, rows)
    return states


def layer_states(checkpoint: Checkpoint, rows: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield the states of all rows after the embedding, after each layer and finally after the final norm."""
    spec = checkpoint.spec
    states = embed(checkpoint, rows)
    yield states
    for layer in range(spec.n_layers):
        weights = checkpoint.layer(layer)
        states = [block(x, weights, spec) for x in states]
        yield states
    norm = checkpoint.read("norm.weight")
    yield [rms_norm(x, norm, spec.rms_norm_eps) for x in states]


def embed(checkpoint: Checkpoint, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the embeddings of each row, float32 `[T, D]`."""
    return [checkpoint.read_rows("embed_tokens.weight", ids) for ids in rows]


def block(x: np.ndarray, weights: Weights, spec: ModelSpec) -> np.ndarray:
    """Apply one layer to x `[T, D]`: pre-norm attention and MLP, each added to the residual stream."""
    normed = rms_norm(x, weights["input_layernorm.weight"], spec.rms_norm_eps)
    x = x + attention(normed, weights, spec)
    normed = rms_norm(x, weights["post_attention_layernorm.weight"], spec.rms_norm_eps)
    return x + mlp(normed, weights)


def attention(x: np.ndarray, weights: Weights, spec: ModelSpec) -> np.ndarray:
    """Apply bidirectional grouped-query attention, `[T, D]` to `[T, D]`."""
    return mixed_heads(x, weights, spec) @ weights["self_attn.o_proj.weight"].T


def mixed_heads(x: np.ndarray, weights: Weights, spec: ModelSpec) -> np.ndarray:
    """Return the outputs of all attention heads before `o_proj`, `[T, D]` to `[T, heads * head_dim]`."""
    T = len(x)
    q = (x @ weights["self_attn.q_proj.weight"].T).reshape(T, spec.n_heads, spec.head_dim)
    k = (x @ weights["self_attn.k_proj.weight"].T).reshape(T, spec.n_kv_heads, spec.head_dim)
    v = (x @ weights["self_attn.v_proj.weight"].T).reshape(T, spec.n_kv_heads, spec.head_dim)
    q = rotate(rms_norm(q, weights["self_attn.q_norm.weight"], spec.rms_norm_eps), spec)
    k = rotate(rms_norm(k, weights["self_attn.k_norm.weight"], spec.rms_norm_eps), spec)
    mixed = np.empty((T, spec.n_heads, spec.head_dim), np.float32)
    for head in range(spec.n_heads):
        kv = head // spec.heads_per_kv
        scores = q[:, head] @ k[:, kv].T / np.float32(np.sqrt(spec.head_dim))  # [T, T]
        mixed[:, head] = softmax(scores) @ v[:, kv]
    return mixed.reshape(T, spec.q_size)


def mlp(x: np.ndarray, weights: Weights) -> np.ndarray:
    """Apply the SwiGLU MLP, `[T, D]` to `[T, D]`."""
    return gated(x, weights) @ weights["mlp.down_proj.weight"].T


def gated(x: np.ndarray, weights: Weights) -> np.ndarray:
    """Return `silu(gate(x)) * up(x)`, the input of `down_proj`: `[T, D]` to `[T, intermediate]`."""
    gate = x @ weights["mlp.gate_proj.weight"].T
    up = x @ weights["mlp.up_proj.weight"].T
    return silu(gate) * up


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """Return `x / sqrt(mean(x²) + eps) * weight` over the last axis."""
    return x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps)) * weight


def rotate(x: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """Apply half-split rotary positions to x `[T, heads, head_dim]`; token t is at position t.

    Components i and i + head_dim/2 form a complex number, which is multiplied by `exp(1j * t * theta^(-2i/head_dim))`
    in double precision. No code is shared with the programs that are compared with this reference.
    """
    frequencies = spec.rope_theta ** (-np.arange(0, spec.head_dim, 2) / spec.head_dim)  # [head_dim/2]
    turns = np.exp(1j * np.outer(np.arange(len(x)), frequencies))[:, None, :]  # [T, 1, head_dim/2]
    left, right = np.split(x, 2, axis=-1)
    turned = (left + 1j * right) * turns
    return np.concatenate([turned.real, turned.imag], axis=-1).astype(np.float32)


def silu(x: np.ndarray) -> np.ndarray:
    """Return `x * sigmoid(x)`, without overflow for very negative x."""
    return x * (0.5 * (1 + np.tanh(0.5 * x)))


def softmax(scores: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis."""
    exp = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)
