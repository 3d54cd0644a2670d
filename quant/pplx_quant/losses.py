"""Training losses: pure functions of tensors, in the notation of arXiv 2602.11151.

Letters in shapes: B pairs, D dimensions.

Two deviations from the formulas of the paper are deliberate. The margin, which ignores negatives that are probably
unlabeled answers, also applies to L_batch and to the loss with mined negatives, where the paper has no mask. And the
loss with mined negatives has no other queries as negatives.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pplx_quant.fake_quant import int8_straight_through

FALSE_NEGATIVE_MARGIN = 0.1
SEQUENCE_SHARE = 0.2


def info_nce(
    queries: Tensor,
    docs: Tensor,
    temperature: float,
    margin: float = FALSE_NEGATIVE_MARGIN,
    query_keys: Tensor | None = None,
    doc_keys: Tensor | None = None,
    extra: Tensor | None = None,
    extra_keys: Tensor | None = None,
    query_negatives: bool = True,
    doc_negatives: bool = True,
) -> Tensor:
    """Return the mean over i of −log softmax of s(qᵢ, dᵢ) against the other documents and queries, a scalar.

    `queries` and `docs` are float `[B, D]`, and s is their cosine divided by `temperature`. A negative x of query i
    counts only if cos(qᵢ, x) ≤ cos(qᵢ, dᵢ) + `margin`. Rows with equal `query_keys` or `doc_keys` (integers `[B]`) are
    the same text and never each other's negatives. `extra` `[M, D]` are further documents, such as mined hard
    negatives; they are negatives of every query whose own document has another key (`extra_keys`, integers `[M]`).
    `query_negatives` and `doc_negatives` are False if the other queries or the other `docs` are not negatives.

    Raises ValueError if the shapes do not match.
    """
    if queries.ndim != 2 or queries.shape != docs.shape:
        raise ValueError(f"queries {tuple(queries.shape)} and docs {tuple(docs.shape)} must both be [B, D]")
    queries, docs = F.normalize(queries, dim=-1), F.normalize(docs, dim=-1)
    own = (queries * docs).sum(dim=-1, keepdim=True)  # [B, 1]
    same = same_text(len(queries), query_keys, doc_keys, queries.device)
    others = [docs] * doc_negatives + [queries] * query_negatives
    scores, dropped = [queries @ other.T for other in others], [same for _ in others]  # [B, B] each
    if extra is not None and len(extra):
        scores.append(queries @ F.normalize(extra, dim=-1).T)  # [B, M]
        dropped.append(_equal(doc_keys, extra_keys, (len(queries), len(extra)), queries.device))
    negatives, drop = torch.cat(scores, dim=1), torch.cat(dropped, dim=1)
    negatives = negatives.masked_fill(drop | (negatives.detach() > own.detach() + margin), -torch.inf)
    logits = torch.cat([own, negatives], dim=1) / temperature  # [B, 1 + negatives]
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


def _equal(rows: Tensor | None, columns: Tensor | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    if rows is None or columns is None:
        return torch.zeros(shape, dtype=torch.bool, device=device)
    return rows.unsqueeze(1) == columns.unsqueeze(0)


def same_text(n_rows: int, query_keys: Tensor | None, doc_keys: Tensor | None, device: torch.device) -> Tensor:
    """Return bool `[B, B]`: True where rows i and j are the same row, or have the same query or the same document."""
    same = torch.eye(n_rows, dtype=torch.bool, device=device)
    for keys in (query_keys, doc_keys):
        if keys is not None:
            same = same | (keys.unsqueeze(0) == keys.unsqueeze(1))
    return same


@dataclass(frozen=True)
class ContextBatch:
    """The relations in a batch of documents in chunks.

    Letters: Q queries, C chunks of all documents, M documents. `gold` int64 `[Q]` is the chunk that answers each query,
    and `document` int64 `[C]` the document of each chunk. Equal `chunk_keys` int64 `[C]`, `document_keys` int64 `[M]`
    and `query_keys` int64 `[Q]` mark equal texts (the paper compares MD5 hashes of documents).
    """

    gold: Tensor
    document: Tensor
    chunk_keys: Tensor
    document_keys: Tensor
    query_keys: Tensor


def sequence_loss(queries: Tensor, chunks: Tensor, batch: ContextBatch, temperature: float) -> Tensor:
    """Return the mean over queries of −log softmax of the gold chunk among the chunks of its own document, a scalar.

    `queries` are `[Q, D]`, `chunks` `[C, D]`. Other chunks with the same text as the gold chunk do not count. Queries
    of documents of one chunk have nothing to learn here and do not count in the mean; it is 0 if there are no others.
    """
    same_document = batch.document[batch.gold].unsqueeze(1) == batch.document.unsqueeze(0)  # [Q, C]
    losses = _gold_softmax(queries, chunks, batch, same_document, temperature, margin=torch.inf)
    several = same_document.sum(dim=1) > 1
    return (losses * several).sum() / several.sum().clamp(min=1)


def batch_loss(queries: Tensor, chunks: Tensor, batch: ContextBatch, temperature: float, margin: float) -> Tensor:
    """Return the mean over queries of −log softmax of the gold chunk among all chunks of the batch, a scalar.

    A chunk does not count if its cosine is more than `margin` above that of the gold chunk, or if its text is the same.
    """
    everywhere = torch.ones(len(queries), len(chunks), dtype=torch.bool, device=queries.device)
    return _gold_softmax(queries, chunks, batch, everywhere, temperature, margin).mean()


def _gold_softmax(
    queries: Tensor, chunks: Tensor, batch: ContextBatch, candidates: Tensor, temperature: float, margin: float
) -> Tensor:
    """Return the loss of each query, `[Q]`."""
    scores = F.normalize(queries, dim=-1) @ F.normalize(chunks, dim=-1).T  # [Q, C]
    own = scores.gather(1, batch.gold.unsqueeze(1))  # [Q, 1]
    places = torch.arange(scores.shape[1], device=scores.device)
    is_gold = places.unsqueeze(0) == batch.gold.unsqueeze(1)
    repeats = (batch.chunk_keys[batch.gold].unsqueeze(1) == batch.chunk_keys.unsqueeze(0)) & ~is_gold
    dropped = ~candidates | repeats | (~is_gold & (scores.detach() > own.detach() + margin))
    logits = scores.masked_fill(dropped, -torch.inf) / temperature
    return logits.logsumexp(dim=1) - own.squeeze(1) / temperature


def global_loss(queries: Tensor, documents: Tensor, batch: ContextBatch, temperature: float, margin: float) -> Tensor:
    """Return InfoNCE of queries `[Q, D]` against whole documents `[M, D]` and the other queries, a scalar.

    Every document of the batch is a negative once, however many questions it has. Documents with the same key are never
    each other's negatives.
    """
    own = batch.document[batch.gold]  # [Q]
    return info_nce(
        queries,
        documents[own],
        temperature,
        margin,
        query_keys=batch.query_keys,
        doc_keys=batch.document_keys[own],
        extra=documents,
        extra_keys=batch.document_keys,
        doc_negatives=False,
    )


def contextual_loss(
    queries: Tensor,
    chunks: Tensor,
    documents: Tensor,
    batch: ContextBatch,
    beta: float,
    temperature: float,
    margin: float = FALSE_NEGATIVE_MARGIN,
) -> Tensor:
    """Return `β·L_global + (1−β)·(0.2·L_seq + 0.8·L_batch)`, a scalar. Shapes are those of the parts."""
    local = SEQUENCE_SHARE * sequence_loss(queries, chunks, batch, temperature) + (1 - SEQUENCE_SHARE) * batch_loss(
        queries, chunks, batch, temperature, margin
    )
    return beta * global_loss(queries, documents, batch, temperature, margin) + (1 - beta) * local


def cosine_schedule(step: int, n_steps: int, start: float, stop: float) -> float:
    """Return β at a step: `start` at the first step, `stop` at the last, and half a cosine wave between them."""
    share = step / max(1, n_steps - 1)
    return stop + (start - stop) * 0.5 * (1 + math.cos(math.pi * share))


def distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of `1 − cos` over rows, on the components that `[K, D]` and `[K, W]` share; 0 for no rows."""
    width = min(student.shape[1], teacher.shape[1])
    if not len(student):
        return student.sum() * 0.0
    return (1 - F.cosine_similarity(student[:, :width], teacher[:, :width], dim=-1)).mean()


def score_distillation(queries: Tensor, candidates: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """Return the mean over queries of KL(teacher, student) over each query's own candidates, a scalar.

    `queries` are `[B, D]`, `candidates` `[B, C, D]`. The student's distribution is the softmax of its cosines over
    `temperature`, the teacher's that of `scores` `[B, C]`. A candidate whose score is NaN does not count, and neither
    does a query with fewer than two scores; the result is 0 if no query counts.
    """
    known = scores.isfinite()
    counts = known.sum(dim=1) > 1
    cosines = F.cosine_similarity(queries[:, None], candidates, dim=-1) / temperature  # [B, C]
    student = cosines.masked_fill(~known, -torch.inf)[counts].log_softmax(dim=1)
    teacher = scores.masked_fill(~known, -torch.inf)[counts].log_softmax(dim=1)
    shares = teacher.exp()
    terms = torch.where(shares > 0, shares * (teacher - student), 0.0)
    return terms.sum() / counts.sum().clamp(min=1)


def diffusion_loss(logits: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
    """Return the sum over masked tokens of cross-entropy / t, a scalar, which is to be divided by the number of tokens.

    `logits` `[K, V]` predict the K masked tokens `targets` `[K]`, whose sequences were masked with probability `noise`
    `[K]`. This is the negative evidence lower bound of absorbing-state diffusion (arXiv 2406.07524, 2502.09992).
    """
    return (F.cross_entropy(logits.float(), targets, reduction="none") / noise).sum()


def binary_straight_through(means: Tensor) -> Tensor:
    """Return the binary codes ±1 of means `[..., D]`, +1 for zero, with the gradient of `tanh(means)`."""
    soft = torch.tanh(means)
    return soft + (torch.where(means >= 0, 1.0, -1.0).to(soft.dtype) - soft).detach()


def matryoshka(
    loss: Callable[..., Tensor], means: Sequence[Tensor], dims: Sequence[int], binary_weight: float = 0.0
) -> Tensor:
    """Return the mean over `dims` of the loss of int8 straight-through codes of the first `dim` components, a scalar.

    `means` are the means before tanh, `[…, D]`. `binary_weight` times the loss of binary codes is added. (The paper
    trains with int8 codes alone, and binary codes of narrow vectors lose more by that than those of wide ones.)
    Raises ValueError for a dim outside 1…D.
    """
    width = means[0].shape[1]
    if not dims or any(not 1 <= dim <= width for dim in dims):
        raise ValueError(f"matryoshka dims {tuple(dims)} must be in 1…{width}")
    codes = [int8_straight_through(part) for part in means]
    total = torch.stack([loss(*(part[:, :dim] for part in codes)) for dim in dims]).mean()
    return total + binary_weight * loss(*map(binary_straight_through, means)) if binary_weight else total
