import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_edge.types import Span, TokenBatch
from pplx_edge.vectors.pooling import mean_of, packed_span_means, span_means

DIM = 5


def batch_of(lengths: list[int], spans: list[Span], left: bool, width: int) -> TokenBatch:
    mask = np.zeros((len(lengths), width), np.int64)
    for row, length in enumerate(lengths):
        mask[row, width - length if left else 0 : width if left else length] = 1
    return TokenBatch(np.zeros_like(mask), mask, tuple(spans))


def states_of(batch: TokenBatch, seed: int = 0) -> np.ndarray:
    """Random states, NaN wherever there is padding."""
    states = np.random.default_rng(seed).standard_normal((*batch.attention_mask.shape, DIM), dtype=np.float32)
    states[batch.attention_mask == 0] = np.nan
    return states


def oracle(states: np.ndarray, batch: TokenBatch) -> list[list[float]]:
    means = []
    for span in batch.spans:
        columns = [t for t, real in enumerate(batch.attention_mask[span.row]) if real][span.start : span.stop]
        values = [states[span.row, t].tolist() for t in columns]
        means.append([math.fsum(column) / len(values) for column in zip(*values, strict=True)] or [0.0] * DIM)
    return means


@st.composite
def batches(draw: st.DrawFn) -> TokenBatch:
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    cut = st.integers(0, len(lengths) - 1).flatmap(
        lambda row: st.tuples(st.just(row), st.integers(0, lengths[row]), st.integers(0, lengths[row]))
    )
    spans = [Span(row, min(a, b), max(a, b)) for row, a, b in draw(st.lists(cut, max_size=6))]
    return batch_of(lengths, spans, draw(st.booleans()), max(lengths) + draw(st.integers(0, 2)))


@given(batches())
def test_means_are_those_of_a_plain_loop(batch: TokenBatch):
    states = states_of(batch)
    means = span_means(states, batch)
    assert means.dtype == np.float32
    assert means.shape == (len(batch.spans), DIM)
    np.testing.assert_allclose(means, np.array(oracle(states, batch)).reshape(-1, DIM), atol=1e-6)


@given(batches())
def test_packed_and_padded_states_give_identical_means(batch: TokenBatch):
    states = states_of(batch)
    packed = states[batch.attention_mask == 1]
    offsets = np.concatenate([[0], np.cumsum(batch.lengths)])
    assert packed_span_means(packed, offsets, batch.spans).tobytes() == span_means(states, batch).tobytes()


@given(batches())
def test_a_mean_does_not_depend_on_the_batch_around_it(batch: TokenBatch):
    states = states_of(batch)
    for span, mean in zip(batch.spans, span_means(states, batch), strict=True):
        row = states[span.row][batch.attention_mask[span.row] == 1][None]
        alone = TokenBatch(np.zeros(row.shape[:2]), np.ones(row.shape[:2], np.int64), (Span(0, span.start, span.stop),))
        assert span_means(row, alone)[0].tobytes() == mean.tobytes()


@pytest.mark.parametrize("left", [False, True])
def test_an_empty_span_is_a_zero_vector(left: bool):
    batch = batch_of([3, 1], [Span(0, 0, 0), Span(0, 3, 3), Span(1, 1, 1), Span(1, 0, 1)], left, 4)
    means = span_means(states_of(batch), batch)
    assert (means[:3] == 0).all()
    assert (means[3] != 0).all()


def test_no_spans_give_no_means():
    batch = batch_of([2], [], False, 2)
    assert span_means(states_of(batch), batch).shape == (0, DIM)
    assert packed_span_means(states_of(batch)[0], np.array([0, 2]), ()).shape == (0, DIM)


def test_half_precision_states_are_summed_in_float32():
    states = np.full((1, 300, DIM), 60000, np.float16)
    batch = batch_of([300], [Span(0, 0, 300)], False, 300)
    assert span_means(states, batch)[0].tolist() == [60000] * DIM


def test_long_means_stay_exact_enough():
    states = np.random.default_rng(0).standard_normal((8192, 64), dtype=np.float32) + 3
    np.testing.assert_allclose(mean_of(states), states.mean(axis=0, dtype=np.float64), rtol=1e-5)


def test_states_are_not_written_to():
    batch = batch_of([3], [Span(0, 0, 3)], False, 3)
    states = states_of(batch)
    states.flags.writeable = False
    span_means(states, batch)
