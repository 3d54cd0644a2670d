"""Contrastive losses: pure functions of arrays, in the notation of arXiv 2602.11151.

Letters in shapes: B pairs, D dimensions.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pplx_quant.fake_quant import int8_straight_through

FALSE_NEGATIVE_MARGIN = 0.1


def info_nce(
    queries: Tensor,
    docs: Tensor,
    temperature: float,
    margin: float = FALSE_NEGATIVE_MARGIN,
    query_keys: Tensor | None = None,
    doc_keys: Tensor | None = None,
) -> Tensor:
    """Mean over i of −log softmax of s(qᵢ, dᵢ) against all other documents and all other queries: a scalar.

    `queries` and `docs` are float `[B, D]`, s is their cosine over `temperature`. A negative x of query i counts only
    if cos(qᵢ, x) ≤ cos(qᵢ, dᵢ) + `margin`. Rows with equal `query_keys` or `doc_keys` (integers `[B]`) hold the same
    text and are never each other's negatives.

    Raises ValueError for shapes that do not match.
    """
    if queries.ndim != 2 or queries.shape != docs.shape:
        raise ValueError(f"queries {tuple(queries.shape)} and docs {tuple(docs.shape)} must both be [B, D]")
    queries, docs = F.normalize(queries, dim=-1), F.normalize(docs, dim=-1)
    to_docs, to_queries = queries @ docs.T, queries @ queries.T  # [B, B] each
    own = to_docs.diagonal().unsqueeze(1)  # [B, 1]
    limit = own.detach() + margin
    same = same_text(len(queries), query_keys, doc_keys, queries.device)
    drop_docs, drop_queries = same | (to_docs.detach() > limit), same | (to_queries.detach() > limit)
    negatives = torch.cat(
        [to_docs.masked_fill(drop_docs, -torch.inf), to_queries.masked_fill(drop_queries, -torch.inf)], dim=1
    )
    logits = torch.cat([own, negatives], dim=1) / temperature  # [B, 1 + 2B]
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


def same_text(n_rows: int, query_keys: Tensor | None, doc_keys: Tensor | None, device: torch.device) -> Tensor:
    """Bool `[B, B]`: rows i and j are the same row, or share their query or their document."""
    same = torch.eye(n_rows, dtype=torch.bool, device=device)
    for keys in (query_keys, doc_keys):
        if keys is not None:
            same = same | (keys.unsqueeze(0) == keys.unsqueeze(1))
    return same


def matryoshka(loss: Callable[[Tensor, Tensor], Tensor], queries: Tensor, docs: Tensor, dims: Sequence[int]) -> Tensor:
    """Mean of `loss(queries, docs)` over int8 straight-through codes of the first `dim` components, for each dim.

    `queries` and `docs` are pre-tanh means `[B, D]`. Raises ValueError for a dim that is not in 1…D.
    """
    width = queries.shape[1]
    if not dims or any(not 1 <= dim <= width for dim in dims):
        raise ValueError(f"matryoshka dims {tuple(dims)} must be in 1…{width}")
    query_codes, doc_codes = int8_straight_through(queries), int8_straight_through(docs)
    return torch.stack([loss(query_codes[:, :dim], doc_codes[:, :dim]) for dim in dims]).mean()
