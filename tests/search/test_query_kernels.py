"""Compare the kernels with plain NumPy arithmetic, and the scanner with a full sort."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_edge.errors import InputError
from pplx_search.query.kernels import KERNELS, NumpyKernel, asymmetric_scores, cosines, open_kernel, row_bytes, signs
from pplx_search.query.scanner import Scanner

dims = st.sampled_from([128, 130, 256, 512, 1024, 1000, 2560])
seeds = st.integers(0, 2**32 - 1)


def make_rows(seed: int, n_rows: int, dim: int) -> np.ndarray:
    rows = np.random.default_rng(seed).integers(-127, 128, (n_rows, dim)).astype(np.int8)
    rows[::7] = 127 * np.sign(rows[::7])  # the largest possible sums
    rows[3::11] = 0
    return rows


@pytest.mark.parametrize("name", KERNELS)
@given(seed=seeds, n_rows=st.integers(0, 40), dim=dims)
def test_kernels_return_the_integers_of_plain_arithmetic(name: str, seed: int, n_rows: int, dim: int):
    kernel = open_kernel(name)
    query, *_ = rows = make_rows(seed, n_rows + 1, dim)
    rows = rows[1:]
    wide = rows.astype(np.int64)
    assert kernel.dots(query, rows).tolist() == (wide @ query.astype(np.int64)).tolist()
    assert kernel.squares(rows).tolist() == (wide**2).sum(axis=1).tolist()
    distances = kernel.hamming(signs(query[None])[0], signs(rows))
    assert distances.tolist() == ((rows >= 0) != (query >= 0)).sum(axis=1).tolist()


@given(seed=seeds, dim=dims)
def test_kernels_return_bit_identical_cosines(seed: int, dim: int):
    rows = make_rows(seed, 50, dim)
    found = [cosines(open_kernel(name), rows[0], rows) for name in KERNELS]
    assert np.array_equal(found[0], found[1])
    assert found[0][3] == 0  # a row of zeros has a cosine of 0 with everything
    assert np.allclose(found[0][0], 1 if rows[0].any() else 0)
    assert np.abs(found[0]).max() <= 1 + 1e-12


@pytest.mark.parametrize("name", KERNELS)
@given(seed=seeds, dim=dims)
def test_asymmetric_scores_sum_the_query_over_the_set_bits(name: str, seed: int, dim: int):
    query, *_ = rows = make_rows(seed, 30, dim)
    ones = (rows >= 0).astype(np.int64)
    assert asymmetric_scores(open_kernel(name), query, signs(rows)).tolist() == (ones @ query.astype(np.int64)).tolist()


@given(
    seed=seeds,
    n_rows=st.integers(0, 300),
    count=st.integers(1, 80),
    share=st.sampled_from([0.0, 0.1, 0.7, 1.0]),
    threads=st.integers(1, 3),
)
def test_the_scan_finds_what_a_full_sort_finds(seed: int, n_rows: int, count: int, share: float, threads: int):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 4, (n_rows, 8)).astype(np.uint8)  # few distinct distances, so many ties
    query = rng.integers(0, 256, 8).astype(np.uint8)
    allowed = rng.random(n_rows) < share
    scanner = Scanner(NumpyKernel(), threads)
    scanner.block, scanner.min_rows_for_threads = 32, 1
    distances = scanner.kernel.hamming(query, bits)
    inside = np.flatnonzero(allowed)
    expected = inside[np.argsort(distances[inside], kind="stable")][:count]
    for rows, found in (scanner.nearest(query, bits, count, allowed), scanner.nearest_of(query, bits, count, inside)):
        assert rows.tolist() == expected.tolist()
        assert found.tolist() == distances[expected].tolist()
    everything = np.argsort(distances, kind="stable")[:count]
    assert scanner.nearest(query, bits, count, None)[0].tolist() == everything.tolist()


@pytest.mark.parametrize(("dim", "expected"), [(128, 16), (130, 24), (192, 24), (1024, 128), (2560, 320)])
def test_rows_of_bits_are_padded_to_whole_words(dim: int, expected: int):
    assert row_bytes(dim) == expected
    assert signs(np.zeros((2, dim), np.int8)).shape == (2, expected)


def test_zero_counts_as_positive_and_the_first_component_is_the_highest_bit():
    codes = np.full((1, 64), -1, np.int8)
    codes[0, [0, 9]] = 0, 5
    assert signs(codes)[0].tolist() == [0b10000000, 0b01000000, 0, 0, 0, 0, 0, 0]


def test_an_unknown_kernel_is_refused():
    with pytest.raises(InputError, match="unknown kernel 'fast'; choose one of numkong, numpy"):
        open_kernel("fast")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("share", [None, 0.5, 0.01])
def test_a_limit_estimated_from_a_sample_does_not_change_the_result(
    threads: int, share: float | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Scanner, "min_rows_for_threads", 1000)
    monkeypatch.setattr(Scanner, "sample", 512)
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (40_000, 16), np.uint8)
    rows[20_000:24_000] = rows[0]  # the nearest rows are ties, and not evenly distributed
    allowed = None if share is None else rng.random(len(rows)) < share
    places = np.arange(len(rows)) if allowed is None else np.flatnonzero(allowed)
    scanner = Scanner(NumpyKernel(), threads)
    for query in (rows[0], rows[1], rng.integers(0, 256, 16, np.uint8)):
        distances = np.bitwise_count(rows ^ query).sum(axis=1)[places]
        for count in (1, 50, 1000):
            expected = places[np.argsort(distances, kind="stable")[:count]]
            found, _ = scanner.nearest(query, rows, count, allowed)
            assert np.array_equal(found, expected)
