import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from pplx_edge.errors import InputError
from pplx_edge.types import PRECISIONS
from pplx_edge.vectors.codes import quantize
from pplx_edge.vectors.similarity import code_dots, paired_cosines, similarity, top_k

DIM = 16


def vectors(precision: str, n_rows: int = 3, seed: int = 0) -> np.ndarray:
    return quantize(np.random.default_rng(seed).standard_normal((n_rows, DIM), dtype=np.float32), precision)


def rows(dtype: type, elements: st.SearchStrategy, width: int = DIM) -> st.SearchStrategy[np.ndarray]:
    return hnp.arrays(dtype, st.tuples(st.integers(1, 4), st.just(width)), elements=elements)


INT8_ROWS = rows(np.int8, st.integers(-127, 127)).filter(lambda codes: (np.abs(codes) != 1).any())
FLOAT_ROWS = rows(np.float32, st.just(0.0) | st.floats(2**-10, 8, width=32) | st.floats(-8, -(2**-10), width=32))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """scipy's cosine in float64, 0 where a row is all zeros."""
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(1 - cdist(a.astype(float), b.astype(float), "cosine"))


@given(a=INT8_ROWS, b=INT8_ROWS)
def test_int8_codes_are_compared_by_cosine(a: np.ndarray, b: np.ndarray):
    scores = similarity(a, b)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, cosines(a, b), atol=1e-6)


@given(a=FLOAT_ROWS, b=FLOAT_ROWS)
def test_means_are_compared_by_cosine(a: np.ndarray, b: np.ndarray):
    np.testing.assert_allclose(similarity(a, b), cosines(a, b), atol=1e-6)
    np.testing.assert_allclose(similarity(a.astype(np.float64), b), cosines(a, b), atol=1e-6)


def test_large_codes_do_not_overflow():
    a = np.full((1, 4096), 127, np.int8)
    assert similarity(a, a) == pytest.approx(1)
    assert similarity(a, -a) == pytest.approx(-1)


@given(a=rows(np.uint8, st.integers(0, 255), 5), b=rows(np.uint8, st.integers(0, 255), 5))
def test_packed_bits_are_compared_by_hamming(a: np.ndarray, b: np.ndarray):
    scores = similarity(a, b)
    assert scores.dtype == np.float32
    for i, left in enumerate(a.tolist()):
        for j, right in enumerate(b.tolist()):
            distance = sum((x ^ y) >> bit & 1 for x, y in zip(left, right, strict=True) for bit in range(8))
            assert scores[i, j] == pytest.approx(1 - 2 * distance / 40, abs=1e-6)
    bits = cdist(np.unpackbits(a, axis=1), np.unpackbits(b, axis=1), "hamming")
    np.testing.assert_allclose(scores, 1 - 2 * bits, atol=1e-6)


@given(FLOAT_ROWS)
def test_packed_and_unpacked_signs_score_the_same(means: np.ndarray):
    binary, packed = quantize(means, "binary"), quantize(means, "ubinary")
    np.testing.assert_allclose(similarity(binary, binary), similarity(packed, packed), atol=1e-6)


@pytest.mark.parametrize("precision", ["int8", "float32"])
def test_a_zero_vector_is_unlike_everything(precision: str):
    a = vectors(precision)
    a[1] = 0
    scores = similarity(a, a)
    assert (scores[1] == 0).all()
    assert (scores[:, 1] == 0).all()
    assert scores[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("a", PRECISIONS)
@pytest.mark.parametrize("b", PRECISIONS)
def test_kinds_do_not_mix(a: str, b: str):
    if a == b:
        assert similarity(vectors(a), vectors(b)).shape == (3, 3)
        return
    with pytest.raises(InputError, match=r"cannot compare .* with .*: encode both at the same precision"):
        similarity(vectors(a), vectors(b))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_rows_give_no_scores(precision: str):
    some, none = vectors(precision, 3), vectors(precision, 0)
    assert similarity(some, none).shape == (3, 0)
    assert similarity(none, some).shape == (0, 3)
    assert similarity(none, none).shape == (0, 0)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_single_vector_is_one_row(precision: str):
    a = vectors(precision)
    assert similarity(a[0], a).tolist() == similarity(a[:1], a).tolist()
    assert similarity(a, a[0]).shape == (3, 1)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_widths_must_be_equal(precision: str):
    a = vectors(precision)
    with pytest.raises(InputError, match=r"width \d+ and \d+: encode both at the same dim"):
        similarity(a, a[:, :-1])


@pytest.mark.parametrize("dtype", [np.int64, np.int16, np.float16, bool, object, "U4", complex])
def test_other_dtypes_are_not_embeddings(dtype):
    with pytest.raises(InputError, match="expected vectors of dtype"):
        similarity(np.ones((2, DIM)).astype(dtype), vectors("float32"))


def test_stacks_of_matrices_are_refused():
    with pytest.raises(InputError, match="shapes"):
        similarity(np.zeros((2, 2, DIM), np.float32), vectors("float32"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_vectors_are_not_written_to(precision: str):
    a, b = vectors(precision), vectors(precision, seed=1)
    a.flags.writeable = b.flags.writeable = False
    before = a.tobytes(), b.tobytes()
    similarity(a, b)
    assert (a.tobytes(), b.tobytes()) == before


@given(st.lists(st.integers(-3, 3), max_size=20), st.integers(0, 25))
def test_top_k_is_a_stable_sort(values: list[int], k: int):
    scores = np.array(values, np.float32)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert top_k(scores, k).tolist() == expected


@given(a=FLOAT_ROWS, b=FLOAT_ROWS)
def test_paired_cosines_are_the_diagonal_of_all_pairs(a: np.ndarray, b: np.ndarray):
    n = min(len(a), len(b))
    found = paired_cosines(a[:n], b[:n])
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, np.diag(cosines(a[:n], b[:n])), atol=1e-12)


def test_paired_cosines_of_a_zero_row_are_zero():
    assert paired_cosines(np.zeros((1, 4)), np.ones((1, 4))).tolist() == [0]


@given(rows(np.int8, st.integers(-127, 127), 3000), rows(np.int8, st.integers(-127, 127), 3000))
@settings(max_examples=20)
def test_dot_products_of_codes_are_exact(a: np.ndarray, b: np.ndarray):
    np.testing.assert_array_equal(code_dots(a, b), a.astype(np.int64) @ b.astype(np.int64).T)


def test_dot_products_of_the_largest_codes_are_exact():
    a = np.full((1, 2561), 127, np.int8)
    assert code_dots(a, -a).tolist() == [[-127 * 127 * 2561]]
