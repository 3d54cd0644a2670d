"""Mean pooling of token states over spans. The vector of a single input is the mean of a span that covers its row."""

from collections.abc import Sequence

import numpy as np

from pplx_edge.types import Span, TokenBatch


def span_means(states: np.ndarray, batch: TokenBatch) -> np.ndarray:
    """Return the mean state of each span, float32 `[N, D]`, from states `[B, T, D]`; an empty span gives zeros.

    States are added token by token in float32, so a mean depends only on its own tokens, not on the rest of the batch.
    """
    means = np.zeros((len(batch.spans), states.shape[-1]), np.float32)
    first = np.argmax(batch.attention_mask, axis=1)  # the first real token of each row, for either padding side
    for i, span in enumerate(batch.spans):
        if span.n_tokens:
            means[i] = mean_of(states[span.row, first[span.row] + span.start : first[span.row] + span.stop])
    return means


def packed_span_means(states: np.ndarray, offsets: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """Return the mean state of each span, float32 `[N, D]`, from packed states `[S, D]` with row r at `offsets[r]`."""
    means = np.zeros((len(spans), states.shape[-1]), np.float32)
    for i, span in enumerate(spans):
        if span.n_tokens:
            start = int(offsets[span.row])
            means[i] = mean_of(states[start + span.start : start + span.stop])
    return means


def mean_of(states: np.ndarray) -> np.ndarray:
    """Return the mean over tokens of states `[T, D]`, float32 `[D]`, accumulated in float32; T must be at least 1."""
    return states.sum(axis=0, dtype=np.float32) / np.float32(len(states))
