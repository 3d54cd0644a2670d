"""Initial attention weights for contextual training, which add a share of the document's mean to every token.

A small training budget is not enough to learn attention across a document from random weights. So the heads start as
the simplest contextual encoder: one head of each group attends to all tokens equally, another to the beginning of the
document, which usually says what it is about. The values are the token vectors themselves. The vector of a text
without a document keeps its direction, because the mean of what is added is nearly its own mean; the vector of a chunk
moves towards the mean of its document.
"""

import math

import torch

from pplx_edge.models.qwen3_torch import Attention, Qwen3Encoder
from pplx_quant.errors import ConfigError

BEGINNING_TOKENS = 125.0  # attention to the beginning falls by a factor of e over this many tokens
CONSTANT_GAIN = 8.0
MIN_CONSTANT = 1.0  # of the last component; a token vector has a length of about 20


def give_context(model: Qwen3Encoder, strength: float) -> None:
    """Replace the attention weights of `model`, in place; `strength` scales the output of each head.

    Queries and keys depend only on the last component, which the final norm sets to zero (see `pplx_quant.model`), so
    they are the same for every token except for their rotation. Values of the last component below `MIN_CONSTANT` are
    raised to it, because a negative one would invert attention. Rotary pair p rotates by its frequency f per token.
    With the slowest pair, a query scores all keys almost equally. With a pair that rotates by less than 90° over the
    maximum length, and a query that is 90° ahead of the keys, the scores are g·sin(f·(i − j)): they decrease evenly
    with the key position j for every query position i. The norm of the queries sets g so that e^score falls by a factor
    of e every `BEGINNING_TOKENS`. Layer l passes on components `l·K·d … (l+1)·K·d − 1`, for K key heads of width d.

    Raises ConfigError if a key head serves fewer than two query heads, or if heads are too narrow for two rotary pairs.
    """
    spec = model.spec
    if spec.heads_per_kv < 2 or spec.head_dim < 4:
        raise ConfigError(
            "a context prior needs at least two query heads for each key head, and heads of at least 4 dimensions"
        )
    with torch.no_grad():
        model.embed_tokens.weight[:, -1].clamp_(min=MIN_CONSTANT)
        for layer, block in enumerate(model.blocks):
            _give_context(block.self_attn, layer, strength, spec.max_tokens)


def quiet_constant(model: Qwen3Encoder, factor: float) -> None:
    """Scale the last component of the attention input by `factor`, and its weights by the inverse, in place.

    The model computes the same function. The last component is by far the largest one of frequent tokens, and the int8
    step of activations is proportional to the largest component. SmoothQuant (arXiv 2211.10438) moves magnitude from
    activations into weights in the same way.
    """
    with torch.no_grad():
        for block in model.blocks:
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
        attention.q_proj.weight[beginning + leaning + half, -1] = -CONSTANT_GAIN  # 90° from the key
        for n in range(max(0, min(width, spec.hidden_size - 1 - first))):
            attention.v_proj.weight[key + n, first + n] = 1.0
            attention.o_proj.weight[first + n, [evenly + n, beginning + n]] = strength


def leaning_pair(head_dim: int, theta: float, max_tokens: int) -> int:
    """Return the fastest rotary pair that rotates by less than 90° over `max_tokens`, or the second slowest."""
    pairs = range(head_dim // 2 - 1)
    return next((n for n in pairs if theta ** (-2 * n / head_dim) * max_tokens < math.pi / 2), head_dim // 2 - 2)
