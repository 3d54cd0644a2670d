"""Which rows go to a session together: sorted by length, filled to a budget of tokens and attention, never by count."""

from collections.abc import Sequence

import numpy as np

from pplx_edge.types import BatchPolicy, Span, TokenBatch, TokenRow


def plan_batches(lengths: Sequence[int], policy: BatchPolicy) -> list[list[int]]:
    """Row indices of each batch, longest rows first, so that the peak of memory comes at once.

    Every row with tokens is in exactly one batch; rows of length 0 are in none, as there is nothing to compute.
    """
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    tokens = attention = 0
    for i in order:
        cost = lengths[batches[-1][0]] if policy.padded and batches else lengths[i]
        fits = tokens + cost <= policy.max_tokens and attention + cost * cost <= policy.max_attention
        if not batches or not fits:
            batches.append([])
            tokens, attention, cost = 0, 0, lengths[i]
        batches[-1].append(i)
        tokens, attention = tokens + cost, attention + cost * cost
    return batches


def collate(rows: Sequence[TokenRow], pad_id: int) -> TokenBatch:
    """A batch of rows padded on the right, with the spans of all rows in order."""
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad_id, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for r, row in enumerate(rows):
        ids[r, : len(row)] = row.ids
        mask[r, : len(row)] = 1
    spans = tuple(Span(r, start, stop) for r, row in enumerate(rows) for start, stop in row.bounds)
    return TokenBatch(ids, mask, spans)
