"""Rounding of weights: within half a step, never out of range, and what MLX and ONNX Runtime make of it."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from pplx_edge.weights.rounding import (
    quantize_groups,
    quantize_int4,
    quantize_projection,
    quantize_rows,
    scaled_projection,
)


@given(hnp.arrays(np.float32, (5, 9), elements=st.floats(-1e4, 1e4, width=32)))
def test_quantized_rows_are_within_half_a_step(weight: np.ndarray) -> None:
    codes, scales = quantize_rows(weight)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max(initial=0) <= 127
    restored = codes.astype(np.float64) * scales[:, None]
    step = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert (np.abs(restored - weight) <= 0.5 * step + 1e-6 * np.abs(weight) + 1e-29).all()


# ---------------------------------------------------------------- rows that are multiplied

PROJECTIONS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    elements=st.one_of(
        st.floats(-1e4, 1e4, width=32),
        st.floats(-(2.0**127), 2.0**127, width=32),
        st.integers(-127, 127).map(float),  # sums of two that end in .5 after scaling
    ),
)


def saturating_products(activations: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """`activations @ codes.T` as a processor without VNNI computes it: neighbors are added in 16 bits, and saturate."""
    pairs = activations.astype(np.int64)[:, None] * codes  # [S, R, C]
    pairs = np.pad(pairs, ((0, 0), (0, 0), (0, codes.shape[1] % 2)))
    return (pairs[..., 0::2] + pairs[..., 1::2]).clip(-(2**15), 2**15 - 1).sum(axis=2)


@given(PROJECTIONS, st.integers(0, 2**32 - 1))
def test_products_of_projection_codes_never_saturate(weight: np.ndarray, seed: int) -> None:
    codes, _ = quantize_projection(weight)
    extremes = np.random.default_rng(seed).choice([0, 255], (20, weight.shape[1])).astype(np.uint8)
    extremes[:2] = [[0], [255]]
    exact = extremes.astype(np.int64) @ codes.astype(np.int64).T
    np.testing.assert_array_equal(saturating_products(extremes, codes), exact)


@given(hnp.arrays(np.float32, (3, 64), elements=st.floats(-1e4, 1e4, width=32)), st.integers(0, 2**32 - 1))
def test_products_of_four_bits_never_saturate(weight: np.ndarray, seed: int) -> None:
    scaled, _ = scaled_projection(weight)
    packed = quantize_int4(scaled)
    codes = packed.int8_codes().astype(np.int64)
    steps = packed.codes.astype(int).reshape(3, 2, 32) - packed.zeros[..., None]
    np.testing.assert_array_equal(codes.reshape(3, 2, 32), steps * packed.multipliers[..., None])
    assert max(packed.codes.max(), packed.zeros.max(), packed.multipliers.max()) <= 15
    extremes = np.random.default_rng(seed).choice([0, 255], (20, 64)).astype(np.uint8)
    np.testing.assert_array_equal(saturating_products(extremes, codes), extremes.astype(np.int64) @ codes.T)


def test_four_bits_are_nearly_the_best_of_all_multipliers_and_zero_points() -> None:
    scaled, _ = scaled_projection(np.random.default_rng(0).standard_t(5, (8, 256)).astype(np.float32))
    groups = scaled.reshape(-1, 32)
    best = np.full(len(groups), np.inf)
    for multiplier in range(1, 16):
        for zero in range(16):
            codes = np.clip(np.rint(groups / multiplier), -zero, 15 - zero) * multiplier
            fits = (np.abs(codes).max(axis=1) <= 127) & (np.abs(codes[:, 0::2] + codes[:, 1::2]).max(axis=1) <= 128)
            best = np.where(fits, np.minimum(best, np.square(codes - groups).sum(axis=1)), best)
    error = np.square(quantize_int4(scaled).int8_codes() - scaled).sum()
    assert error == pytest.approx(best.sum(), rel=0.005)


def test_products_of_row_codes_do_saturate() -> None:
    codes, _ = quantize_rows(np.ones((1, 2), np.float32))
    assert saturating_products(np.full((1, 2), 255, np.uint8), codes) != 255 * 127 * 2


@given(PROJECTIONS)
def test_projection_codes_are_within_half_a_step_of_the_least_scale_that_fits(weight: np.ndarray) -> None:
    codes, scales = quantize_projection(weight)
    rows = weight.astype(np.float64).tolist()
    for row, found, scale in zip(rows, codes.tolist(), scales.tolist(), strict=True):
        sums = [a + b for a, b in zip(row[0::2], [*row[1::2], 0.0], strict=False)]
        least = max(map(abs, [*row, *sums])) / 127
        assert scale == pytest.approx(max(least, 1e-30), rel=1e-6)
        assert max(map(abs, found)) <= 127
        assert all(abs(a + b) <= 128 for a, b in zip(found[0::2], found[1::2], strict=False))
        for code, w in zip(found, row, strict=True):
            assert abs(code * scale - w) <= 0.5 * scale + 1e-6 * abs(w)


# ---------------------------------------------------------------- groups of 4 bits


def one_group(weights: np.ndarray) -> tuple[list[int], np.float32, np.float32]:
    """The steps of MLX's affine quantizer, one number after the other, in float32."""
    low, high = min(weights), max(weights)
    step = max((high - low) / np.float32(15), np.float32(1e-7))
    edge = low
    if not abs(low) > abs(high):
        step, edge = -step, high
    to_zero, bias = np.rint(edge / step), np.float32(0)
    if to_zero != 0:
        step, bias = edge / to_zero, edge
    return [int(min(max(np.rint((w - bias) / step), 0), 15)) for w in weights], step, bias


ELEMENTS = st.one_of(
    st.floats(-1e4, 1e4, width=32),
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.integers(-15, 15).map(lambda half: half / 2),  # ties
    st.sampled_from([0.0, -0.0, 7.5, -7.5, 1e-7, -1e-38]),
)


@given(hnp.arrays(np.float32, (1, 64), elements=ELEMENTS))
def test_groups_are_rounded_step_by_step(weight: np.ndarray) -> None:
    codes, scales, biases = quantize_groups(weight, 32)
    assert (codes.dtype, scales.dtype, biases.dtype) == (np.uint8, np.float32, np.float32)
    for group in range(2):
        columns = slice(32 * group, 32 * group + 32)
        expected, scale, bias = one_group(weight[0, columns])
        assert codes[0, columns].tolist() == expected
        assert (scales[0, group], biases[0, group]) == (scale, bias)


SAMPLES = {
    "normal": lambda rng: rng.standard_normal((16, 256)),
    "heavy tails": lambda rng: rng.standard_t(2, (16, 256)),
    "ties": lambda rng: rng.integers(-30, 31, (16, 256)) / 2,
    "one sign": lambda rng: 5 + np.abs(rng.standard_normal((16, 256))),
    "tiny": lambda rng: 1e-7 * rng.standard_normal((16, 256)),
    "huge": lambda rng: 1e30 * rng.standard_normal((16, 256)),
    "zeros": lambda rng: np.zeros((16, 256)),
}


@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("sample", SAMPLES)
def test_groups_are_those_of_mlx_bit_for_bit(sample: str, group_size: int) -> None:
    mx = pytest.importorskip("mlx.core")
    weight = SAMPLES[sample](np.random.default_rng(0)).astype(np.float32)
    codes, scales, biases = quantize_groups(weight, group_size)
    with mx.stream(mx.cpu):
        packed, *expected = mx.quantize(mx.array(weight), group_size=group_size, bits=4)
        restored = np.array(mx.dequantize(packed, *expected, group_size=group_size, bits=4))
    unpacked = (np.array(packed)[..., None] >> np.arange(0, 32, 4).astype(np.uint32)) & 15
    np.testing.assert_array_equal(codes, unpacked.reshape(weight.shape))
    np.testing.assert_array_equal(scales, np.array(expected[0]))
    np.testing.assert_array_equal(biases, np.array(expected[1]))
    ours = codes.reshape(16, -1, group_size) * scales[..., None] + biases[..., None]
    np.testing.assert_array_equal(ours.reshape(weight.shape), restored)


@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_matmul_nbits_computes_the_same_product(group_size: int) -> None:
    """Its zero points are integers: those of groups with both signs, which `-bias / scale` gives."""
    rng = np.random.default_rng(1)
    weight, x = rng.standard_normal((24, 256)).astype(np.float32), rng.standard_normal((5, 256)).astype(np.float32)
    codes, scales, biases = quantize_groups(weight, group_size)
    zero_points = -biases / scales
    np.testing.assert_allclose(zero_points, np.rint(zero_points), atol=1e-5)
    assert (np.rint(zero_points) >= 0).all()
    assert (np.rint(zero_points) <= 15).all()
    initializers = {
        "w": nibbles(codes).reshape(24, -1, group_size // 2),
        "scales": scales.reshape(-1),
        "zeros": nibbles(np.rint(zero_points).astype(np.uint8)).reshape(-1),
    }
    sizes: dict[str, Any] = {"K": 256, "N": 24, "bits": 4, "block_size": group_size, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", ["x", *initializers], ["y"], domain="com.microsoft", **sizes)
    ends = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y"))
    graph = helper.make_graph([node], "product", [next(ends)], [next(ends)])
    graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in initializers.items())
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": x})
    restored = codes.reshape(24, -1, group_size) * scales[..., None] + biases[..., None]
    np.testing.assert_allclose(np.asarray(found), x @ restored.reshape(weight.shape).T, rtol=1e-4, atol=1e-4)


def nibbles(codes: np.ndarray) -> np.ndarray:
    """Pairs of 4-bit codes along a row in one byte, the first one low; an odd row is filled with 0."""
    codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return codes[:, 0::2] | (codes[:, 1::2] << 4)


def test_rows_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 96 weights do not divide into groups of 64"):
        quantize_groups(np.zeros((2, 96), np.float32), 64)
