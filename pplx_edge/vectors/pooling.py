"""Token states to span means. A plain embedding is the one span that covers its row, so this is the only pooling."""

from collections.abc import Sequence

import numpy as np

from pplx_edge.types import Span, TokenBatch


def span_means(states: np.ndarray, batch: TokenBatch) -> np.ndarray:
    """Mean state of each span, float32 `[N, D]`, from states `[B, T, D]`; an empty span gives zeros.

    Sums run token by token in float32, so a mean depends on its own tokens only, not on the batch around them.
    """
    means = np.zeros((len(batch.spans), states.shape[-1]), np.float32)
    first = np.argmax(batch.attention_mask, axis=1)  # where the real tokens begin, left padding or right
    for i, span in enumerate(batch.spans):
        if span.n_tokens:
            means[i] = mean_of(states[span.row, first[span.row] + span.start : first[span.row] + span.stop])
    return means


def packed_span_means(states: np.ndarray, offsets: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """The same from packed states `[S, D]`, where row r begins at `offsets[r]`."""
    means = np.zeros((len(spans), states.shape[-1]), np.float32)
    for i, span in enumerate(spans):
        if span.n_tokens:
            start = int(offsets[span.row])
            means[i] = mean_of(states[start + span.start : start + span.stop])
    return means


def mean_of(states: np.ndarray) -> np.ndarray:
    """Mean over tokens of states `[T, D]`, T at least 1, accumulated in float32."""
    return states.sum(axis=0, dtype=np.float32) / np.float32(len(states))
