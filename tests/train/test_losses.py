"""Losses against slow, obvious NumPy."""

from functools import partial

import numpy as np
import pytest
import torch
from pplx_quant.fake_quant import int8_straight_through
from pplx_quant.losses import info_nce, matryoshka

from pplx_edge.quantize import int8_codes


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def info_nce_oracle(queries, docs, temperature, margin, query_keys=None, doc_keys=None) -> float:
    losses = []
    for i in range(len(queries)):
        own = cosine(queries[i], docs[i])
        total = np.exp(own / temperature)
        for j in range(len(queries)):
            same = any(keys is not None and keys[i] == keys[j] for keys in (query_keys, doc_keys))
            if i == j or same:
                continue
            for other in (docs[j], queries[j]):
                score = cosine(queries[i], other)
                if score <= own + margin:
                    total += np.exp(score / temperature)
        losses.append(-np.log(np.exp(own / temperature) / total))
    return float(np.mean(losses))


def sample(seed: int, n_rows: int = 12, dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    docs = generator.standard_normal((n_rows, dim))
    return docs + generator.standard_normal((n_rows, dim)), docs


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("margin", [0.0, 0.1, 5.0])
def test_info_nce_equals_oracle(seed, margin):
    queries, docs = sample(seed)
    found = info_nce(torch.tensor(queries), torch.tensor(docs), temperature=0.05, margin=margin)
    assert found.item() == pytest.approx(info_nce_oracle(queries, docs, 0.05, margin), rel=1e-9)


def test_rows_with_the_same_text_are_not_negatives():
    queries, docs = sample(0)
    docs[3], queries[5] = docs[1], queries[2]
    keys = [np.arange(12), np.arange(12)]
    keys[0][5], keys[1][3] = 2, 1
    tensors = [torch.tensor(array) for array in (queries, docs)]
    found = info_nce(*tensors, 0.1, query_keys=torch.tensor(keys[0]), doc_keys=torch.tensor(keys[1]))
    assert found.item() == pytest.approx(info_nce_oracle(queries, docs, 0.1, 0.1, *keys), rel=1e-9)
    assert found < info_nce(*tensors, 0.1)


def test_false_negative_mask_has_no_effect_on_gradient_of_masked_rows():
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    docs = torch.tensor([[0.2, 1.0], [1.0, 0.1]], requires_grad=True)  # the other document fits far better
    info_nce(queries, docs, temperature=0.05).backward()
    assert torch.isfinite(queries.grad).all()
    assert info_nce(queries, docs, temperature=0.05) < 0.1


def test_a_single_pair_has_no_loss():
    queries, docs = sample(1, n_rows=1)
    assert info_nce(torch.tensor(queries), torch.tensor(docs), 0.05).item() == pytest.approx(0.0, abs=1e-12)


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"must both be \[B, D\]"):
        info_nce(torch.zeros(2, 3), torch.zeros(3, 3), 0.05)


@pytest.mark.parametrize("dims", [(6,), (6, 3), (2, 4, 6)])
def test_matryoshka_is_the_mean_over_cut_int8_codes(dims):
    queries, docs = sample(2)
    found = matryoshka(partial(info_nce, temperature=0.05), torch.tensor(queries), torch.tensor(docs), dims)
    codes = [int8_codes(array).astype(np.float64) for array in (queries, docs)]
    expected = np.mean([info_nce_oracle(codes[0][:, :dim], codes[1][:, :dim], 0.05, 0.1) for dim in dims])
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dims", [(), (0,), (7,)])
def test_matryoshka_refuses_dims_out_of_range(dims):
    with pytest.raises(ValueError, match="must be in 1…6"):
        matryoshka(partial(info_nce, temperature=0.05), torch.zeros(2, 6), torch.zeros(2, 6), dims)


def test_straight_through_rounds_forward_and_passes_the_gradient_of_tanh():
    means = torch.linspace(-3, 3, 101, requires_grad=True)
    codes = int8_straight_through(means)
    np.testing.assert_array_equal(codes.detach().round().numpy(), int8_codes(means.detach().numpy()))
    codes.sum().backward()
    np.testing.assert_allclose(means.grad.numpy(), 127 * (1 - np.tanh(means.detach().numpy()) ** 2), rtol=1e-4)
