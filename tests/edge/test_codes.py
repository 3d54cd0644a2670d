import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pplx_edge.errors import InputError, NumericalError
from pplx_edge.types import PRECISIONS
from pplx_edge.vectors.codes import (
    int8_codes,
    packed_signs,
    quantize,
    require_dim,
    require_finite,
    require_precision,
    sign_codes,
    truncate_dims,
    unpacked_signs,
)

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.floats(-4, 4, width=32)


def means_of(n_rows: int | st.SearchStrategy, dim: int | st.SearchStrategy) -> st.SearchStrategy[np.ndarray]:
    sizes = st.tuples(*(size if isinstance(size, st.SearchStrategy) else st.just(size) for size in (n_rows, dim)))
    return hnp.arrays(np.float32, sizes, elements=FINITE)


MEANS = means_of(st.integers(0, 4), st.integers(1, 40))


@given(MEANS)
def test_int8_is_the_nearest_integer_to_127_tanh(means: np.ndarray):
    codes = quantize(means, "int8")
    assert codes.dtype == np.int8
    assert codes.shape == means.shape
    for code, mean in zip(codes.ravel().tolist(), means.ravel().tolist(), strict=True):
        assert -127 <= code <= 127
        assert abs(code - 127 * math.tanh(mean)) <= 0.5 + 1e-4


@given(MEANS)
def test_int8_agrees_with_torch(means: np.ndarray):
    import torch

    expected = torch.round(127 * torch.tanh(torch.from_numpy(means))).numpy()
    assert (np.abs(int8_codes(means) - expected) <= 1).all()


@given(means_of(1, st.integers(1, 40)))
def test_int8_is_odd_and_monotone(means: np.ndarray):
    assert (int8_codes(-means) == -int8_codes(means)).all()
    assert (np.diff(int8_codes(np.sort(means)).astype(int)) >= 0).all()


def test_int8_saturates_and_never_wraps():
    means = np.array([[3.4e38, 1e10, 20, 9, -9, -20, -1e10, -3.4e38]], np.float32)
    assert quantize(means, "int8").tolist() == [[127, 127, 127, 127, -127, -127, -127, -127]]


def test_codes_change_exactly_where_127_tanh_passes_a_half():
    """At each bound and its two neighbors in float32, by a tanh of 50 digits."""
    for half in range(-253, 254, 2):  # twice the value that is passed
        near = np.float32(math.atanh(half / 254))
        means = [np.nextafter(near, np.float32(-9)), near, np.nextafter(near, np.float32(9))]
        with mpmath.workdps(50):
            exact = [int(mpmath.nint(127 * mpmath.tanh(mpmath.mpf(float(mean))))) for mean in means]
        assert int8_codes(np.array(means, np.float32)).tolist() == exact


@given(MEANS)
def test_binary_is_the_sign_and_zero_is_positive(means: np.ndarray):
    codes = quantize(means, "binary")
    assert codes.dtype == np.int8
    assert codes.tolist() == [[1 if mean >= 0 else -1 for mean in row] for row in means.tolist()]


def test_the_sign_of_what_is_nearly_zero():
    assert sign_codes(np.array([0.0, -0.0, 1e-45, -1e-45], np.float32)).tolist() == [1, 1, 1, -1]


@given(means_of(st.integers(0, 4), st.integers(1, 5).map(lambda n: 8 * n)))
def test_packed_bits_are_the_signs_most_significant_first(means: np.ndarray):
    packed = quantize(means, "ubinary")
    assert packed.dtype == np.uint8
    assert packed.shape == (len(means), means.shape[1] // 8)
    for row, codes in zip(means, packed, strict=True):
        for i, mean in enumerate(row):
            bit = int(codes[i // 8]) >> (7 - i % 8) & 1
            assert bit == (1 if mean >= 0 else 0)


def test_the_first_component_is_the_top_bit():
    means = np.array([[1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0]], np.float32)
    assert quantize(means, "ubinary").tolist() == [[0b1000_0000, 0b0000_0001]]


@given(MEANS)
def test_float32_is_the_means_themselves(means: np.ndarray):
    vectors = quantize(means, "float32")
    assert vectors.dtype == np.float32
    assert vectors.tobytes() == means.tobytes()


@given(means=means_of(st.integers(1, 3), 48), dim=st.integers(0, 48))
def test_cutting_first_or_last_gives_the_same_codes(means: np.ndarray, dim: int):
    cut = truncate_dims(means, dim)
    for precision in ("int8", "binary", "float32"):
        assert (quantize(cut, precision) == quantize(means, precision)[:, :dim]).all()
    if dim % 8 == 0:
        assert (quantize(cut, "ubinary") == quantize(means, "ubinary")[:, : dim // 8]).all()


def test_cutting_none_keeps_all_and_copies_nothing():
    means = np.ones((2, 16), np.float32)
    assert truncate_dims(means, None) is means
    assert np.shares_memory(truncate_dims(means, 8), means)


@given(MEANS)
def test_a_vector_does_not_depend_on_its_neighbours(means: np.ndarray):
    for precision in PRECISIONS:
        codes = quantize(means, precision)
        for row, expected in zip(means, codes, strict=True):
            assert (quantize(row[None], precision)[0] == expected).all()


@given(MEANS)
def test_the_means_are_not_written_to(means: np.ndarray):
    before = means.tobytes()
    means.flags.writeable = False
    for precision in PRECISIONS:
        quantize(means, precision)
    assert means.tobytes() == before


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_name(precision, value: float):
    means = np.zeros((4, 16), np.float32)
    means[2, 15] = value
    with pytest.raises(NumericalError, match=r"^row 2: .*NaN or infinity"):
        quantize(means, precision)
    with pytest.raises(NumericalError, match=r"^text 9: "):
        require_finite(means, ["text 0", "text 1", "text 9", "text 3"])
    with pytest.raises(NumericalError, match=r"^row 0: "):
        quantize(means[2], precision)
    quantize(np.delete(means, 2, axis=0), precision)


@pytest.mark.parametrize("precision", ["int4", "INT8", "", "uint8", "bits", None, 8, np.int8, ["int8"]])
def test_an_unknown_precision_is_refused(precision):
    with pytest.raises(InputError, match="choose one of int8, binary, ubinary, float32"):
        require_precision(precision)
    with pytest.raises(InputError, match="unknown precision"):
        quantize(np.zeros((1, 8), np.float32), precision)


def test_a_known_precision_is_returned():
    assert [require_precision(precision) for precision in PRECISIONS] == ["int8", "binary", "ubinary", "float32"]


@pytest.mark.parametrize(
    ("dim", "native", "precision", "expected"),
    [
        (None, 1024, "int8", 1024),
        (None, 64, "int8", 64),
        (128, 1024, "int8", 128),
        (1024, 1024, "ubinary", 1024),
        (129, 1024, "int8", 129),
        (np.int64(256), 1024, "binary", 256),
        (64, 64, "float32", 64),
    ],
)
def test_an_allowed_dim_is_returned(dim, native: int, precision, expected: int):
    found = require_dim(dim, native, precision)
    assert found == expected
    assert type(found) is int


@pytest.mark.parametrize(
    ("dim", "native", "precision", "said"),
    [
        (127, 1024, "int8", "allows 128 to 1024"),
        (1025, 1024, "int8", "allows 128 to 1024"),
        (0, 1024, "int8", "allows 128 to 1024"),
        (-128, 1024, "int8", "allows 128 to 1024"),
        (63, 64, "int8", "allows 64 to 64"),
        (129, 1024, "ubinary", "multiple of 8"),
        (None, 1020, "ubinary", "multiple of 8"),
        (128.0, 1024, "int8", "must be an integer, got float"),
        ("128", 1024, "int8", "must be an integer, got str"),
        (True, 1024, "int8", "must be an integer, got bool"),
    ],
)
def test_a_dim_that_is_not_allowed_is_refused(dim, native: int, precision, said: str):
    with pytest.raises(InputError, match=said):
        require_dim(dim, native, precision)


@pytest.mark.parametrize("dim", [8, 64, 1024])
def test_packed_signs_are_unpacked_in_order(dim: int):
    means = np.random.default_rng(dim).standard_normal((3, dim), dtype=np.float32)
    found = unpacked_signs(packed_signs(means))
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, means >= 0)
