"""The evaluator of Core ML programs: its operators against torch, its decoding against coremltools, its refusals."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("coremltools")

from pplx_convert.coreml.graph import EncoderGraph
from pplx_convert.coreml.mil import TARGET, Var, mb, types
from pplx_convert.coreml.mil_ops import HANDLERS
from pplx_convert.coreml.mil_oracle import MilProgram
from pplx_convert.coreml.mil_values import unpacked
from pplx_convert.coreml.package import WEIGHT_FILE, WEIGHT_FOLDER, PackageWeights, data_folder, write_package
from pplx_convert.coreml.palettes import palettized
from pplx_convert.coreml.weights import Float16
from pplx_edge.errors import ArtifactError, InputError, UnsupportedModel
from pplx_edge.models.qwen3_numpy import rms_norm
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_edge.weights.rounding import quantize_rows

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 8), dtype=np.float32)
W = RNG.standard_normal((5, 8), dtype=np.float32)


def package_of(
    directory: Path, body: Callable[..., Var], shape: tuple[int, ...], weights: PackageWeights | None = None
) -> MilProgram:
    """A saved program of one function `main` of one float16 input `x`."""
    package = directory / "model.mlpackage"
    weights = weights or PackageWeights(data_folder(package) / WEIGHT_FOLDER)

    @mb.function(input_specs=[mb.TensorSpec(shape, types.fp16)], opset_version=TARGET)
    def main(x: Var) -> Var:
        return body(x)

    weights.close()
    write_package(package, {"main": main}, weights, default="main")
    return MilProgram.open(package)


def only_output(program: MilProgram, x: np.ndarray, *, half: bool) -> np.ndarray:
    (output,) = program.run("main", {"x": x.astype(np.float16)}, half=half).values()
    return output


# Operators


def by_torch(function: Callable[..., torch.Tensor], *arrays: np.ndarray) -> np.ndarray:
    return function(*(torch.tensor(array) for array in arrays)).numpy()


@pytest.mark.parametrize(
    ("operator", "arguments", "expected"),
    [
        ("silu", {"x": 30 * X}, by_torch(F.silu, 30 * X)),
        ("linear", {"x": X, "weight": W, "bias": np.ones(5, np.float32)}, by_torch(F.linear, X, W) + 1),
        ("rsqrt", {"x": np.abs(X), "epsilon": np.float32(0.5)}, by_torch(torch.rsqrt, np.abs(X) + np.float32(0.5))),
        ("reduce_mean", {"x": X, "axes": np.array([-1]), "keep_dims": True}, X.mean(axis=2, keepdims=True)),
        ("reduce_max", {"x": X, "axes": np.array([1]), "keep_dims": False}, by_torch(lambda x: x.amax(1), X)),
        ("transpose", {"x": X, "perm": np.array([0, 2, 1])}, by_torch(lambda x: x.permute(0, 2, 1), X)),
        ("reshape", {"x": X, "shape": np.array([0, -1, 4])}, X.reshape(2, 6, 4)),
        ("concat", {"values": [X, X], "axis": np.int32(-1)}, by_torch(lambda x: torch.cat([x, x], -1), X)),
        ("maximum", {"x": X, "y": np.float32(0)}, by_torch(F.relu, X)),
        (
            "matmul",
            {"x": X, "y": X, "transpose_x": False, "transpose_y": True},
            by_torch(lambda x: x @ x.transpose(1, 2), X),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operators_compute_what_torch_does(operator: str, arguments: dict[str, object], expected: np.ndarray) -> None:
    np.testing.assert_allclose(HANDLERS[operator](arguments), expected, rtol=2e-6, atol=1e-6)


def test_attention_is_torchs_with_more_queries_than_keys_and_a_mask() -> None:
    q, k, v = (RNG.standard_normal((1, 2, n, 16), dtype=np.float32) for n in (14, 7, 7))
    mask = np.where(np.arange(7) < 5, 0, -30000).astype(np.float32)[None, None, None]
    found = HANDLERS["scaled_dot_product_attention"]({"query": q, "key": k, "value": v, "attn_mask": mask})
    expected = by_torch(F.scaled_dot_product_attention, q, k, v, mask)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_split_gives_equal_parts_in_order() -> None:
    left, right = HANDLERS["split"]({"x": X, "num_splits": np.int32(2), "axis": np.int32(-1)})
    np.testing.assert_array_equal(np.concatenate([left, right], -1), X)


# Decoding


@pytest.mark.parametrize("bits", [4, 6])
def test_packed_bits_are_those_that_the_blob_writer_writes(tmp_path: Path, bits: int) -> None:
    codes = RNG.integers(0, 1 << bits, 37, dtype=np.uint8)
    weights = PackageWeights(tmp_path / "weights")
    weights.add("codes", codes, {4: types.uint4, 6: types.uint6}[bits])
    weights.close()
    raw = np.fromfile(tmp_path / "weights" / WEIGHT_FILE, np.uint8)[128:]  # behind the file's header and the tensor's
    np.testing.assert_array_equal(unpacked(raw, bits, len(codes)), codes)


def test_palettes_decode_as_coremltools_decodes_them() -> None:
    from coremltools.optimize import _utils

    weight = RNG.standard_normal((64, 24), dtype=np.float32)
    indices, palettes = palettized(weight, 4)
    lut = palettes[:, None, :, None].astype(np.float32)
    found = HANDLERS["constexpr_lut_to_dense"]({"indices": indices, "lut": lut})
    np.testing.assert_array_equal(found, _utils.lut_to_dense(indices, lut, None))
    assert np.abs(found - weight).mean() < 0.1


def test_int8_rows_decode_to_codes_times_scales() -> None:
    codes, scales = quantize_rows(W)
    found = HANDLERS["constexpr_blockwise_shift_scale"]({"data": codes, "scale": scales[:, None]})
    np.testing.assert_array_equal(found, codes * scales[:, None])
    assert np.abs(found - W).max() <= scales.max()


def test_scales_of_blocks_and_offsets_are_applied_to_their_blocks() -> None:
    data = np.arange(8, dtype=np.int8).reshape(2, 4)
    scale, offset = np.array([[1, 10], [2, 20]], np.float32), np.array([[0, 2], [4, 6]], np.int8)
    found = HANDLERS["constexpr_blockwise_shift_scale"]({"data": data, "scale": scale, "offset": offset})
    np.testing.assert_array_equal(found, [[0, 1, 0, 10], [0, 2, 0, 20]])


# Float16


def norm_of(make: type[EncoderGraph], tiny_dir: Path, directory: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A norm of the graph alone, evaluated with float16 rounding, and what it should be."""
    checkpoint = Checkpoint.open(tiny_dir)
    weight = checkpoint.read("norm.weight")
    weights = PackageWeights(data_folder(directory / "model.mlpackage") / WEIGHT_FOLDER)
    weights.add("norm.weight", weight.astype(np.float16))
    graph = make(checkpoint.spec, Float16(), weights)
    program = package_of(directory, lambda value: graph.norm(value, "norm.weight"), x.shape, weights)
    x = x.astype(np.float16).astype(np.float32)
    return only_output(program, x, half=True), rms_norm(x, weight, checkpoint.spec.rms_norm_eps)


class UnsafeNorm(EncoderGraph):
    """Squares before it divides."""

    def norm(self, x: Var, weight: str) -> Var:
        mean = mb.reduce_mean(x=mb.mul(x=x, y=x), axes=[-1], keep_dims=True)
        unit = mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float16(1e-6)))
        return mb.mul(x=unit, y=self.weights.const(weight))


@pytest.mark.parametrize("magnitude", [3e4, 6e4, 100.0, 1.0, 1e-2, 1e-4])
def test_norm_holds_in_float16_at_any_magnitude(tiny_dir: Path, tmp_path: Path, magnitude: float) -> None:
    x = RNG.uniform(-1, 1, (1, 6, 64)).astype(np.float32)
    x[0, 0] = np.sign(x[0, 0])  # a row of extremes alone
    x[0, 1, 1:] /= 1000  # one large activation among ordinary ones
    found, expected = norm_of(EncoderGraph, tiny_dir, tmp_path, magnitude * x)
    np.testing.assert_allclose(found, expected, rtol=8e-3, atol=2e-3)


def test_norm_of_zeros_is_zeros(tiny_dir: Path, tmp_path: Path) -> None:
    found, _ = norm_of(EncoderGraph, tiny_dir, tmp_path, np.zeros((1, 2, 64), np.float32))
    np.testing.assert_array_equal(found, 0)


def test_a_norm_that_squares_first_is_exposed_by_float16_rounding(tiny_dir: Path, tmp_path: Path) -> None:
    x = RNG.uniform(2e4, 3e4, (1, 2, 64)).astype(np.float32) * RNG.choice([-1, 1], (1, 2, 64))
    found, expected = norm_of(UnsafeNorm, tiny_dir, tmp_path, x)
    np.testing.assert_array_equal(found, 0)  # the row vanishes, without a NaN to tell of it
    assert np.abs(expected).min() > 0.01


def test_rounding_is_done_only_when_asked_for(tmp_path: Path) -> None:
    program = package_of(tmp_path, lambda x: mb.real_div(x=x, y=np.float16(3)), (1, 4))
    x = np.array([[1, 2, 4, 5]], np.float32)
    np.testing.assert_array_equal(only_output(program, x, half=False), x / np.float32(3))
    np.testing.assert_array_equal(
        only_output(program, x, half=True), (x / np.float32(3)).astype(np.float16).astype(np.float32)
    )


# Refusals


def test_an_operator_without_handler_is_named(tmp_path: Path) -> None:
    program = package_of(tmp_path, lambda x: mb.erf(x=x, name="odd"), (1, 4))
    with pytest.raises(UnsupportedModel, match=r"odd.*'erf'"):
        only_output(program, np.ones((1, 4)), half=False)


def test_unknown_functions_and_values_are_named(tmp_path: Path) -> None:
    program = package_of(tmp_path, lambda x: mb.abs(x=x, name="y"), (1, 4))
    with pytest.raises(InputError, match=r"'other'.*main"):
        program.run("other", {"x": np.ones((1, 4))})
    with pytest.raises(InputError, match="'z'"):
        program.run("main", {"x": np.ones((1, 4))}, also=["z"])


def test_damaged_packages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model\.mlmodel"):
        MilProgram.open(tmp_path / "absent.mlpackage")
    weights = PackageWeights(data_folder(tmp_path / "model.mlpackage") / WEIGHT_FOLDER)
    weights.add("w", np.ones(16, np.float16))
    program = package_of(tmp_path, lambda x: mb.mul(x=x, y=weights.const("w")), (1, 16), weights)
    file = data_folder(tmp_path / "model.mlpackage") / WEIGHT_FOLDER / WEIGHT_FILE
    raw = bytearray(file.read_bytes())
    raw[64:68] = bytes(4)  # the mark of the first tensor
    file.write_bytes(raw)
    with pytest.raises(ArtifactError, match="no tensor begins"):
        only_output(program, np.ones((1, 16)), half=False)
