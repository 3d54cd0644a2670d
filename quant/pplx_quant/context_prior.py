"""A starting point for contextual training: attention that hands every token a share of its document.

A bag of words has nothing to say about the document around a chunk, and a small budget does not teach attention to
look at it from nothing. So its heads are started as what the plainest contextual encoder would do: one looks at all
tokens alike, one at the beginning, where documents say what they are about; what they see is the tokens' own vectors.
A text alone keeps its direction, as the mean of what is added is (nearly) its own mean; a chunk moves towards its
document.
"""

import math

import torch

from pplx_edge.models.qwen3_torch import Attention, Qwen3Encoder
from pplx_quant.errors import ConfigError

BEGINNING_TOKENS = 125.0  # attention to the beginning falls to 1/e over so many
CONSTANT_GAIN = 8.0
LEAST_CONSTANT = 1.0  # of the last component of a token that is some 20 long


def give_context(model: Qwen3Encoder, strength: float) -> None:
    """Replace the attention of `model`, in place; `strength` is the share of each head's view that is added.

    Queries and keys are read from the last component alone, which the final norm does not let through (see
    `pplx_quant.model`), and are therefore the same for every token but for their rotation. Where training has let it go
    below `LEAST_CONSTANT`, it is raised to that, as a negative one would turn attention around. Rotary pair p turns by
    its frequency f per token. With the slowest pair a query scores all keys alike. With a pair that turns by less than
    90° over the model's length, and a query turned by 90° against the keys, scores are g·sin(f·(i − j)): they fall
    evenly with j wherever the query i stands. The norm of queries sets g so that e^score falls by e every
    `BEGINNING_TOKENS`. Layer l hands on components `l·K·d … (l+1)·K·d − 1` for K key heads of width d, until all have
    had their turn.

    Raises ConfigError when key heads serve fewer than two query heads, or heads are too narrow for two rotary pairs.
    """
    spec = model.spec
    if spec.heads_per_kv < 2 or spec.head_dim < 4:
        raise ConfigError("a context prior needs two query heads for each key head, at least 4 wide")
    with torch.no_grad():
        model.embed_tokens.weight[:, -1].clamp_(min=LEAST_CONSTANT)
        for layer, block in enumerate(model.layers):
            _give_context(block.self_attn, layer, strength, spec.max_tokens)


def quiet_constant(model: Qwen3Encoder, factor: float) -> None:
    """Make the last component smaller by `factor` where attention reads it, and its weights larger: the same function.

    It is much the largest component of frequent tokens, and an int8 step of activations is a share of the largest.
    Moving magnitude from activations into weights is the idea of SmoothQuant (arXiv 2211.10438).
    """
    with torch.no_grad():
        for block in model.layers:
            block.input_layernorm.weight[-1] *= factor
            for linear in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
                linear.weight[:, -1] /= factor


def _give_context(attention: Attention, layer: int, strength: float, max_tokens: int) -> None:
    spec, width = attention.spec, attention.spec.head_dim
    half, slowest = width // 2, width // 2 - 1
    leaning = leaning_pair(width, spec.rope_theta, max_tokens)
    frequency = spec.rope_theta ** (-2 * leaning / width)
    for weight in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight, attention.o_proj.weight):
        weight.zero_()
    attention.q_norm.weight.fill_(1.0)
    attention.k_norm.weight.fill_(1.0)
    # A query of one component has length √d after its norm, a key of two √(d/2) in each: score √(d/2)·g·sin(f·Δ).
    attention.q_norm.weight[[leaning, leaning + half]] = 1 / (BEGINNING_TOKENS * frequency * math.sqrt(width / 2))
    for head in range(spec.n_kv_heads):
        key, first = head * width, (layer * spec.n_kv_heads + head) * width
        evenly, beginning = (width * (head * spec.heads_per_kv + n) for n in range(2))
        attention.k_proj.weight[[key + leaning, key + slowest], -1] = CONSTANT_GAIN
        attention.q_proj.weight[evenly + slowest, -1] = CONSTANT_GAIN
        attention.q_proj.weight[beginning + leaning + half, -1] = -CONSTANT_GAIN  # 90° behind the key
        for n in range(max(0, min(width, spec.hidden_size - 1 - first))):
            attention.v_proj.weight[key + n, first + n] = 1.0
            attention.o_proj.weight[first + n, [evenly + n, beginning + n]] = strength


def leaning_pair(head_dim: int, theta: float, max_tokens: int) -> int:
    """The fastest rotary pair that turns by less than 90° over `max_tokens`; the slowest but one when none does."""
    pairs = range(head_dim // 2 - 1)
    return next((n for n in pairs if theta ** (-2 * n / head_dim) * max_tokens < math.pi / 2), head_dim // 2 - 2)
