"""Statistics, repeats within a budget, the work of a row, and padded batches, each against a slow oracle."""

import statistics
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_bench.shapes import shape_config
from pplx_bench.speed import workload
from pplx_bench.speed.peers.batches import batch_ways, encode_in_batches, masked_means, padded
from pplx_bench.speed.workload import parse_row, parse_rows, row_ids
from pplx_bench.timing import MAX_SAMPLES, CpuWatch, Timing, repeat, spread
from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec


class FakeClock:
    """A clock that only work moves on."""

    def __init__(self, costs: list[float]):
        self.now, self.costs, self.runs = 0.0, costs, 0

    def __call__(self) -> float:
        return self.now

    def work(self) -> None:
        self.now += self.costs[min(self.runs, len(self.costs) - 1)]
        self.runs += 1


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=30))
def test_median_and_spread(samples: list[float]) -> None:
    timing = Timing(tuple(samples), warmed=True)
    assert timing.median == statistics.median(samples)
    assert 0 <= timing.spread <= (max(samples) - min(samples)) / 2 / timing.median + 1e-9


def test_spread_of_an_even_ramp() -> None:
    assert spread([float(n) for n in range(90, 111)]) == pytest.approx(8 / 100)  # 92 … 108 around 100
    assert spread([2.0]) == 0


def test_the_warm_up_is_not_counted() -> None:
    clock = FakeClock([5.0, 1.0])
    timing = repeat(clock.work, repeats=4, budget=20.0, clock=clock)
    assert timing.samples == (1.0,) * 4
    assert timing.warmed


def test_short_rows_are_repeated_longer() -> None:
    clock = FakeClock([0.125])
    assert len(repeat(clock.work, repeats=3, budget=20.0, clock=clock).samples) == 16  # two seconds
    clock = FakeClock([0.001])
    assert len(repeat(clock.work, repeats=3, budget=20.0, clock=clock).samples) == MAX_SAMPLES


def test_the_budget_ends_the_repeats() -> None:
    clock = FakeClock([4.0])
    assert repeat(clock.work, repeats=9, budget=10.0, clock=clock).samples == (4.0, 4.0)


def test_one_cold_run_when_there_is_no_time_for_two() -> None:
    clock = FakeClock([30.0])
    timing = repeat(clock.work, repeats=9, budget=10.0, clock=clock)
    assert (timing.samples, timing.warmed, clock.runs) == ((30.0,), False, 1)


def test_others_are_counted_in_cores() -> None:
    watch = CpuWatch()
    time.sleep(0.05)
    others = watch.others()
    assert others is None or others >= 0


def test_rows() -> None:
    assert parse_row("8x512").lengths == (512,) * 8
    assert parse_row("8×512") == parse_row("8x512")
    mixed = parse_row("mixed")
    assert len(mixed.lengths) == 64
    assert 16 <= min(mixed.lengths) < 64 < 448 < max(mixed.lengths) <= 512
    assert len(set(mixed.lengths)) > 1
    assert parse_row("1x16").lengths == (16,)
    assert [row.name for row in parse_rows("1x16, mixed")] == ["1x16", "mixed"]


@pytest.mark.parametrize("name", ["", "0x5", "5x", "x", "8*512", "-1x3", "8x512x2"])
def test_unknown_rows_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="unknown row"):
        parse_row(name)


def test_ids_are_seeded_and_of_the_rows_lengths() -> None:
    row = parse_row("mixed")
    first, again = row_ids(row, 1000), row_ids(row, 1000)
    assert [len(ids) for ids in first] == list(row.lengths)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert max(ids.max() for ids in first) < 1000


def test_operations_against_counting_every_product() -> None:
    spec = ModelSpec.from_config(shape_config("0.6b"))
    linear = sum(
        np.prod(shape) for name, shape in spec.tensor_shapes().items() if name.startswith("layers") and len(shape) == 2
    )
    lengths = (3, 5)
    scores = sum(2 * 2 * T * T * spec.head_dim for T in lengths for _ in range(spec.n_heads))  # q @ k.T and p @ v
    assert workload.linear_operations(spec, lengths) == 2 * linear * 8
    assert workload.attention_operations(spec, lengths) == spec.n_layers * scores
    assert workload.operations(spec, lengths) == 2 * linear * 8 + spec.n_layers * scores


def fake_encode(ids: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    states = np.stack([ids, ids * 2 + 1], axis=-1).astype(np.float32)
    return masked_means(states, mask)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 9))
def test_batches_give_every_row_its_own_mean_in_order(lengths: list[int], size: int) -> None:
    rng = np.random.default_rng(len(lengths))
    rows = [rng.integers(0, 50, n, dtype=np.int64) for n in lengths]
    expected = np.array([[row.mean(), (row * 2 + 1).mean()] for row in rows])
    np.testing.assert_allclose(encode_in_batches(fake_encode, rows, size), expected, rtol=1e-5)
    for encode in batch_ways(fake_encode, rows).values():
        np.testing.assert_allclose(encode(rows), expected, rtol=1e-5)


def test_rows_of_one_length_need_no_mask() -> None:
    rows = [np.arange(4), np.arange(4)]
    assert padded(rows)[1] is None
    _, mask = padded([np.arange(4), np.arange(2)])
    assert mask is not None
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_ways_of_a_row() -> None:
    assert list(batch_ways(fake_encode, [np.arange(4)])) == ["row by row"]
    assert list(batch_ways(fake_encode, [np.arange(4)] * 32)) == ["row by row", "batches of 8", "one batch of 32"]
    assert list(batch_ways(fake_encode, [np.arange(4), np.arange(9)])) == ["row by row", "batches of 2"]
