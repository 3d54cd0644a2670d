"""The context prior: a text alone keeps its direction, a chunk gets a share of its document."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_samples import TINY

from pplx_edge.models.qwen3_torch import Qwen3Encoder, rotary_table, rotate
from pplx_quant.context_prior import BEGINNING_TOKENS, give_context, quiet_constant
from pplx_quant.errors import ConfigError


def attention_weights(model: Qwen3Encoder, head: int, n_tokens: int) -> np.ndarray:
    """What each query of the first layer looks at, float `[T, T]`, computed the long way."""
    spec, attention = model.spec, model.layers[0].self_attn
    x = model.layers[0].input_layernorm(model.embed_tokens(torch.arange(n_tokens)[None] % spec.vocab_size))
    q = attention.q_norm(attention.q_proj(x).view(1, n_tokens, spec.n_heads, spec.head_dim))[0, :, head]
    k = attention.k_norm(attention.k_proj(x).view(1, n_tokens, spec.n_kv_heads, spec.head_dim))[0, :, 0]
    cos, sin = rotary_table(torch.arange(n_tokens), spec.head_dim, spec.rope_theta)
    return ((rotate(q, cos, sin) @ rotate(k, cos, sin).T) / spec.head_dim**0.5).softmax(dim=-1).detach().numpy()


@pytest.fixture
def model() -> Qwen3Encoder:
    """Blocks that add nothing, and tokens whose last component is of either sign."""
    torch.manual_seed(0)
    model = Qwen3Encoder(replace(TINY, head_dim=32, rope_theta=1e6, max_tokens=4096))
    with torch.no_grad():
        for block in model.layers:
            block.mlp.down_proj.weight.zero_()
    return model


def test_one_head_looks_at_all_tokens_alike(model):
    give_context(model, 1.0)
    np.testing.assert_allclose(attention_weights(model, 0, 300), 1 / 300, rtol=1e-3)


def test_one_head_looks_at_the_beginning_wherever_it_stands(model):
    give_context(model, 1.0)
    weights = attention_weights(model, 1, 300)
    expected = np.exp(-np.arange(300) / BEGINNING_TOKENS)
    np.testing.assert_allclose(weights, np.tile(expected / expected.sum(), (300, 1)), rtol=0.05)


def test_a_chunk_moves_to_its_document_and_a_text_alone_does_not_move(model):
    torch.manual_seed(1)
    document = torch.randint(0, model.spec.vocab_size, (1, 120))
    with torch.no_grad():
        plain = model.embed_tokens(document)[0]
        give_context(model, 1.0)
        model.norm.weight.fill_(1.0)
        states = F.normalize(model(document)[0][:, :-1], dim=-1)
    whole, chunk = plain.mean(dim=0)[:-1], plain[80:100].mean(dim=0)[:-1]
    in_context = states[80:100].mean(dim=0)

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(F.cosine_similarity(a, b, dim=0))

    assert cosine(in_context, whole) > cosine(chunk, whole) + 0.1
    assert cosine(states.mean(dim=0), whole) > 0.9


def test_heads_without_company_are_refused(model):
    lonely = Qwen3Encoder(replace(model.spec, n_heads=model.spec.n_kv_heads))
    with pytest.raises(ConfigError, match="two query heads"):
        give_context(lonely, 1.0)


def test_a_quieter_constant_is_the_same_function(model):
    give_context(model, 0.7)
    ids = torch.randint(0, model.spec.vocab_size, (2, 50))
    with torch.no_grad():
        before = model(ids)
        quiet_constant(model, 0.25)
        torch.testing.assert_close(model(ids), before, rtol=1e-4, atol=1e-4)
