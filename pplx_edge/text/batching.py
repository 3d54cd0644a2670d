"""Group rows into batches: sorted by length and limited by tokens and attention cost, not by the number of rows."""

from collections.abc import Sequence

import numpy as np

from pplx_edge.types import BatchPolicy, Span, TokenBatch, TokenRow


def plan_batches(lengths: Sequence[int], policy: BatchPolicy) -> list[list[int]]:
    """Return the row indices of each batch, longest rows first, so that memory use peaks in the first batches.

    Every row with at least one token is in exactly one batch; empty rows are in none.
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
    """Return a batch of rows, padded on the right with `pad_id`, with the spans of all rows in order."""
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad_id, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for r, row in enumerate(rows):
        ids[r, : len(row)] = row.ids
        mask[r, : len(row)] = 1
    spans = tuple(Span(r, start, stop) for r, row in enumerate(rows) for start, stop in row.bounds)
    return TokenBatch(ids, mask, spans)
