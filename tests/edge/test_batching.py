import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_edge.text.batching import collate, plan_batches
from pplx_edge.types import BatchPolicy, TokenRow

LENGTHS = st.lists(st.integers(0, 40), max_size=30)
POLICIES = st.builds(
    BatchPolicy, max_tokens=st.integers(1, 100), max_attention=st.integers(1, 2000), padded=st.booleans()
)


def cost(batch: list[int], lengths: list[int], policy: BatchPolicy) -> tuple[int, int]:
    """Tokens and squared lengths that a session computes for a batch."""
    widths = [max(lengths[i] for i in batch) if policy.padded else lengths[i] for i in batch]
    return sum(widths), sum(width**2 for width in widths)


def fits(batch: list[int], lengths: list[int], policy: BatchPolicy) -> bool:
    tokens, attention = cost(batch, lengths, policy)
    return tokens <= policy.max_tokens and attention <= policy.max_attention


@given(lengths=LENGTHS, policy=POLICIES)
def test_every_row_with_tokens_is_in_exactly_one_batch(lengths: list[int], policy: BatchPolicy):
    planned = [i for batch in plan_batches(lengths, policy) for i in batch]
    assert sorted(planned) == [i for i, length in enumerate(lengths) if length]


@given(lengths=LENGTHS, policy=POLICIES)
def test_batches_keep_to_the_policy_unless_one_row_is_alone(lengths: list[int], policy: BatchPolicy):
    for batch in plan_batches(lengths, policy):
        assert len(batch) == 1 or fits(batch, lengths, policy)


@given(lengths=LENGTHS, policy=POLICIES)
def test_no_batch_is_cut_before_it_is_full(lengths: list[int], policy: BatchPolicy):
    batches = plan_batches(lengths, policy)
    for batch, following in itertools.pairwise(batches):
        assert not fits([*batch, following[0]], lengths, policy)


@given(lengths=LENGTHS, policy=POLICIES)
def test_rows_go_from_long_to_short_and_ties_keep_their_order(lengths: list[int], policy: BatchPolicy):
    planned = [i for batch in plan_batches(lengths, policy) for i in batch]
    assert planned == sorted(planned, key=lambda i: (-lengths[i], i))


def test_padding_is_paid_for():
    lengths = [10, 1, 1, 1]
    assert plan_batches(lengths, BatchPolicy(max_tokens=20)) == [[0, 1, 2, 3]]
    assert plan_batches(lengths, BatchPolicy(max_tokens=20, padded=True)) == [[0, 1], [2, 3]]


def test_attention_cuts_where_tokens_would_not():
    lengths = [8, 8, 8, 8]
    assert plan_batches(lengths, BatchPolicy(max_tokens=1000, max_attention=128)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_nothing_to_compute_is_no_batch(lengths: list[int]):
    assert plan_batches(lengths, BatchPolicy()) == []


ROWS = st.lists(
    st.lists(st.integers(0, 99), max_size=8).flatmap(
        lambda ids: st.builds(
            TokenRow,
            st.just(np.array(ids, np.int64)),
            st.lists(
                st.tuples(st.integers(0, len(ids)), st.integers(0, len(ids))).map(lambda ab: (min(ab), max(ab))),
                max_size=3,
            ).map(tuple),
        )
    ),
    min_size=1,
    max_size=5,
)


@given(ROWS)
def test_collating_keeps_every_token_and_every_span(rows: list[TokenRow]):
    batch = collate(rows, pad_id=7)
    width = max(len(row) for row in rows)
    assert batch.input_ids.shape == batch.attention_mask.shape == (len(rows), width)
    assert batch.input_ids.dtype == batch.attention_mask.dtype == np.int64
    for row, ids, mask in zip(rows, batch.input_ids.tolist(), batch.attention_mask.tolist(), strict=True):
        padding = width - len(row)
        assert ids == row.ids.tolist() + [7] * padding
        assert mask == [1] * len(row) + [0] * padding
    spans = [(span.row, span.start, span.stop) for span in batch.spans]
    assert spans == [(r, *bounds) for r, row in enumerate(rows) for bounds in row.bounds]
    assert batch.lengths.tolist() == [len(row) for row in rows]


@given(ROWS, st.integers(0, 10))
def test_a_cut_row_keeps_its_first_tokens_and_all_its_spans(rows: list[TokenRow], limit: int):
    for row in rows:
        cut = row.cut(limit)
        assert cut.ids.tolist() == row.ids.tolist()[:limit]
        assert len(cut.bounds) == len(row.bounds)
        for (start, stop), (cut_start, cut_stop) in zip(row.bounds, cut.bounds, strict=True):
            kept = [t for t in range(start, stop) if t < limit]
            assert list(range(cut_start, cut_stop)) == kept
