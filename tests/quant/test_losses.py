"""Losses against slow, obvious NumPy."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pplx_edge.vectors.codes import int8_codes
from pplx_quant.fake_quant import int8_straight_through
from pplx_quant.losses import (
    ContextBatch,
    batch_loss,
    binary_straight_through,
    contextual_loss,
    cosine_schedule,
    diffusion_loss,
    distillation,
    global_loss,
    info_nce,
    matryoshka,
    sequence_loss,
)


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
    found = matryoshka(partial(info_nce, temperature=0.05), (torch.tensor(queries), torch.tensor(docs)), dims)
    codes = [int8_codes(array).astype(np.float64) for array in (queries, docs)]
    expected = np.mean([info_nce_oracle(codes[0][:, :dim], codes[1][:, :dim], 0.05, 0.1) for dim in dims])
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_matryoshka_adds_the_loss_of_binary_codes():
    queries, docs = (torch.tensor(part) for part in sample(3))
    loss = partial(info_nce, temperature=0.05)
    without, added = (matryoshka(loss, (queries, docs), (6,), weight).item() for weight in (0.0, 0.5))
    signs = [np.where(part.numpy() >= 0, 1.0, -1.0) for part in (queries, docs)]
    assert added - without == pytest.approx(0.5 * info_nce_oracle(*signs, 0.05, 0.1), rel=1e-5)


def test_binary_straight_through_counts_zero_as_positive_and_passes_the_gradient_of_tanh():
    means = torch.tensor([-2.0, -0.1, 0.0, 3.0], requires_grad=True)
    codes = binary_straight_through(means)
    codes.sum().backward()
    assert codes.tolist() == pytest.approx([-1, -1, 1, 1])
    torch.testing.assert_close(means.grad, 1 - torch.tanh(means.detach()) ** 2)


@pytest.mark.parametrize("dims", [(), (0,), (7,)])
def test_matryoshka_refuses_dims_out_of_range(dims):
    with pytest.raises(ValueError, match="must be in 1…6"):
        matryoshka(partial(info_nce, temperature=0.05), (torch.zeros(2, 6), torch.zeros(2, 6)), dims)


def test_straight_through_rounds_forward_and_passes_the_gradient_of_tanh():
    means = torch.linspace(-3, 3, 101, requires_grad=True)
    codes = int8_straight_through(means)
    np.testing.assert_array_equal(codes.detach().round().numpy(), int8_codes(means.detach().numpy()))
    codes.sum().backward()
    np.testing.assert_allclose(means.grad.numpy(), 127 * (1 - np.tanh(means.detach().numpy()) ** 2), rtol=1e-4)


def hard_negative_oracle(queries, docs, extra, extra_keys, doc_keys, temperature, margin) -> float:
    losses = []
    for i in range(len(queries)):
        own = cosine(queries[i], docs[i])
        others = [docs[j] for j in range(len(docs)) if j != i and doc_keys[j] != doc_keys[i]]
        others += [extra[m] for m in range(len(extra)) if extra_keys[m] != doc_keys[i]]
        scores = [score for score in (cosine(queries[i], other) for other in others) if score <= own + margin]
        losses.append(np.log(sum(np.exp((score - own) / temperature) for score in [own, *scores])))
    return float(np.mean(losses))


@pytest.mark.parametrize("seed", range(4))
def test_hard_negatives_of_all_queries_count_but_for_their_own_passage(seed):
    queries, docs = sample(seed)
    extra = np.random.default_rng(seed + 50).standard_normal((7, 6))
    doc_keys, extra_keys = np.arange(12), np.array([20, 21, 3, 22, 5, 23, 24])
    doc_keys[7] = 3
    found = info_nce(
        *(torch.tensor(array) for array in (queries, docs)),
        0.05,
        doc_keys=torch.tensor(doc_keys),
        extra=torch.tensor(extra),
        extra_keys=torch.tensor(extra_keys),
        query_negatives=False,
    )
    expected = hard_negative_oracle(queries, docs, extra, extra_keys, doc_keys, 0.05, 0.1)
    assert found.item() == pytest.approx(expected, rel=1e-9)


def context_sample(seed: int):
    """Five queries over three documents of 4, 1 and 3 chunks; chunks 2 and 6 hold the same text."""
    generator = np.random.default_rng(seed)
    chunks, documents = generator.standard_normal((8, 6)), generator.standard_normal((3, 6))
    chunks[6] = chunks[2]
    document, gold = np.array([0, 0, 0, 0, 1, 2, 2, 2]), np.array([2, 0, 4, 7, 6])
    queries = chunks[gold] + generator.standard_normal((5, 6))
    chunk_keys = np.array([10, 11, 12, 13, 14, 15, 12, 17])
    batch = ContextBatch(
        torch.tensor(gold),
        torch.tensor(document),
        torch.tensor(chunk_keys),
        torch.tensor([7, 8, 8]),
        torch.tensor([1, 2, 3, 4, 2]),
    )
    return queries, chunks, documents, batch


def gold_oracle(queries, chunks, batch, temperature, margin, within_document) -> float:
    gold, document, keys = (array.numpy() for array in (batch.gold, batch.document, batch.chunk_keys))
    losses = []
    for query, own in zip(queries, gold, strict=True):
        best = cosine(query, chunks[own])
        total = np.exp(best / temperature)
        for other in range(len(chunks)):
            elsewhere = within_document and document[other] != document[own]
            score = cosine(query, chunks[other])
            if other != own and keys[other] != keys[own] and not elsewhere and score <= best + margin:
                total += np.exp(score / temperature)
        losses.append(np.log(total) - best / temperature)
    several = [not within_document or (document == document[own]).sum() > 1 for own in gold]
    return float(np.mean(np.array(losses)[several]))


def global_oracle(queries, documents, batch, temperature, margin) -> float:
    own = batch.document.numpy()[batch.gold.numpy()]
    keys, query_keys = batch.document_keys.numpy(), batch.query_keys.numpy()
    losses = []
    for i, query in enumerate(queries):
        best = cosine(query, documents[own[i]])
        others = []
        for j in range(len(queries)):
            if j != i and query_keys[j] != query_keys[i] and keys[own[j]] != keys[own[i]]:
                others.append(queries[j])
        others += [documents[m] for m in range(len(documents)) if keys[m] != keys[own[i]]]
        scores = [best, *(score for score in (cosine(query, other) for other in others) if score <= best + margin)]
        losses.append(np.log(np.sum(np.exp(np.array(scores) / temperature))) - best / temperature)
    return float(np.mean(losses))


@pytest.mark.parametrize("seed", range(5))
def test_contextual_losses_equal_their_oracles(seed):
    queries, chunks, documents, batch = context_sample(seed)
    tensors = [torch.tensor(array) for array in (queries, chunks, documents)]
    sequence = gold_oracle(queries, chunks, batch, 0.1, np.inf, within_document=True)
    everywhere = gold_oracle(queries, chunks, batch, 0.1, 0.1, within_document=False)
    whole = global_oracle(queries, documents, batch, 0.1, 0.1)
    assert sequence_loss(*tensors[:2], batch, 0.1).item() == pytest.approx(sequence, rel=1e-9)
    assert batch_loss(*tensors[:2], batch, 0.1, 0.1).item() == pytest.approx(everywhere, rel=1e-9)
    assert global_loss(tensors[0], tensors[2], batch, 0.1, 0.1).item() == pytest.approx(whole, rel=1e-9)
    for beta in (0.0, 0.3, 1.0):
        expected = beta * whole + (1 - beta) * (0.2 * sequence + 0.8 * everywhere)
        found = contextual_loss(*tensors, batch, beta, 0.1)
        assert found.item() == pytest.approx(expected, rel=1e-9)


def test_documents_of_one_chunk_do_not_dilute_the_sequence_loss():
    queries, chunks, _, batch = context_sample(0)
    several = [0, 1, 3, 4]  # query 2 asks about the document of one chunk
    tensors = torch.tensor(queries, requires_grad=True), torch.tensor(chunks)
    fewer = replace(batch, gold=batch.gold[several])
    found = sequence_loss(*tensors, batch, 0.1)
    assert found.item() == pytest.approx(sequence_loss(tensors[0][several], tensors[1], fewer, 0.1).item(), rel=1e-9)
    nothing = sequence_loss(tensors[0][[2]], tensors[1], replace(batch, gold=batch.gold[[2]]), 0.1)
    nothing.backward()
    assert nothing.item() == 0
    assert tensors[0].grad is not None
    assert not tensors[0].grad.any()


def test_beta_goes_from_start_to_stop_on_half_a_cosine():
    course = [cosine_schedule(step, 11, 0.2, 0.5) for step in range(11)]
    assert course[0] == pytest.approx(0.2)
    assert course[5] == pytest.approx(0.35)
    assert course[10] == pytest.approx(0.5)
    assert np.all(np.diff(course) > 0)
    assert np.diff(course).argmax() in (4, 5)


def test_distillation_is_one_minus_cosine_on_shared_components():
    student, teacher = sample(3)
    found = distillation(torch.tensor(student), torch.tensor(teacher[:, :4]))
    expected = np.mean([1 - cosine(a[:4], b[:4]) for a, b in zip(student, teacher, strict=True)])
    assert found.item() == pytest.approx(expected, rel=1e-9)
    nothing = distillation(torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4))
    assert nothing.item() == 0
    nothing.backward()


def test_diffusion_loss_weighs_each_token_by_its_sequences_noise():
    generator = np.random.default_rng(0)
    logits, targets, noise = (
        generator.standard_normal((9, 5)),
        generator.integers(0, 5, 9),
        generator.uniform(0.1, 1, 9),
    )
    found = diffusion_loss(torch.tensor(logits), torch.tensor(targets), torch.tensor(noise))
    log_softmax = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = sum(-log_softmax[i, targets[i]] / noise[i] for i in range(9))
    assert found.item() == pytest.approx(expected, rel=1e-5)
