"""Spherical interpolation against float64 formulas, and merging of whole checkpoints."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import random_weights, tiny_config, write_checkpoint, write_weights
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pplx_edge.errors import CheckpointError, StorageError
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_quant import merge as merging
from pplx_quant.checkpoint import WEIGHTS, read_model, write_float32_weights
from pplx_quant.commands import main
from pplx_quant.errors import ConfigError
from pplx_quant.merge import MergeConfig, merge, slerp

VECTORS = hnp.arrays(np.float32, 6, elements=st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3))
WEIGHTS_BETWEEN = st.floats(0, 1)


def oracle(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    """The formula as it stands, by the arc cosine."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    length_a, length_b = np.linalg.norm(a), np.linalg.norm(b)
    u, v = a / length_a, b / length_b
    theta = np.arccos(np.clip((u * v).sum(), -1, 1))
    direction = (np.sin((1 - t) * theta) * u + np.sin(t * theta) * v) / np.sin(theta)
    return ((1 - t) * length_a + t * length_b) * direction


def angle(a: np.ndarray, b: np.ndarray) -> float:
    u, v = (x.astype(np.float64) / np.linalg.norm(x.astype(np.float64)) for x in (a, b))
    return 2 * float(np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v)))


def assume_a_way(a: np.ndarray, b: np.ndarray) -> None:
    assume(a.any() and b.any())
    assume(angle(a, b) < np.pi - 0.01)


# ---------------------------------------------------------------- the formula


@pytest.mark.parametrize("shape", [(7,), (4, 5)])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.75])
def test_it_is_the_formula(shape: tuple[int, ...], t: float) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(shape).astype(np.float32) * scale for scale in (1, 3))
    merged = slerp(a, b, t)
    assert merged.dtype == np.float32
    np.testing.assert_allclose(merged, oracle(a, b, t), rtol=1e-6, atol=1e-7)


def test_a_quarter_turn_by_hand() -> None:
    a, b = np.array([1, 0], np.float32), np.array([0, 3], np.float32)
    np.testing.assert_allclose(slerp(a, b, 0.5), [2 / np.sqrt(2), 2 / np.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(slerp(a, b, 1 / 3), 5 / 3 * np.array([np.cos(np.pi / 6), 0.5]), rtol=1e-6)


@given(VECTORS, VECTORS, WEIGHTS_BETWEEN)
def test_it_is_symmetric(a: np.ndarray, b: np.ndarray, t: float) -> None:
    assume_a_way(a, b)
    scale = max(np.abs(a).max(), np.abs(b).max())
    np.testing.assert_allclose(slerp(a, b, t), slerp(b, a, 1 - t), rtol=1e-5, atol=1e-6 * scale)


@given(VECTORS, VECTORS, WEIGHTS_BETWEEN)
def test_length_is_interpolated_linearly(a: np.ndarray, b: np.ndarray, t: float) -> None:
    assume_a_way(a, b)
    lengths = [np.linalg.norm(x.astype(np.float64)) for x in (a, b, slerp(a, b, t))]
    assert lengths[2] == pytest.approx((1 - t) * lengths[0] + t * lengths[1], rel=1e-5)


@given(VECTORS, VECTORS, WEIGHTS_BETWEEN, WEIGHTS_BETWEEN)
def test_angles_add_up_along_the_great_circle(a: np.ndarray, b: np.ndarray, s: float, t: float) -> None:
    assume_a_way(a, b)
    s, t = sorted((s, t))
    theta, first, second = angle(a, b), slerp(a, b, s), slerp(a, b, t)
    assert angle(a, first) == pytest.approx(s * theta, abs=1e-4)
    assert angle(first, second) == pytest.approx((t - s) * theta, abs=1e-4)
    assert angle(second, b) == pytest.approx((1 - t) * theta, abs=1e-4)


@given(VECTORS, VECTORS)
def test_weights_0_and_1_give_the_inputs_back_bit_for_bit(a: np.ndarray, b: np.ndarray) -> None:
    assert slerp(a, b, 0).tobytes() == a.tobytes()
    assert slerp(a, b, 1).tobytes() == b.tobytes()


@given(VECTORS, st.floats(0.25, 4, width=32), WEIGHTS_BETWEEN)
def test_parallel_tensors_only_change_their_length(a: np.ndarray, factor: float, t: float) -> None:
    expected = a * ((1 - t) + t * factor)
    np.testing.assert_allclose(slerp(a, a * np.float32(factor), t), expected, rtol=1e-5, atol=1e-8)


@given(VECTORS, WEIGHTS_BETWEEN)
def test_a_tensor_and_itself_give_it_back(a: np.ndarray, t: float) -> None:
    np.testing.assert_array_equal(slerp(a, a, t), a)


@given(VECTORS, WEIGHTS_BETWEEN)
def test_a_zero_tensor_scales_the_other(a: np.ndarray, t: float) -> None:
    zero = np.zeros_like(a)
    np.testing.assert_allclose(slerp(a, zero, t), (1 - t) * a, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(slerp(zero, a, t), t * a, rtol=1e-6, atol=1e-12)
    assert not slerp(zero, zero, t).any()


@given(VECTORS, st.floats(0.25, 4, width=32), st.floats(0.01, 0.99))
def test_opposite_tensors_are_refused(a: np.ndarray, factor: float, t: float) -> None:
    assume(a.any())
    with pytest.raises(CheckpointError, match="are opposite"):
        slerp(a, -a * np.float32(factor), t)
    assert slerp(a, -a, 1).tobytes() == (-a).tobytes()


def test_nearly_opposite_tensors_still_have_a_way() -> None:
    a, b = np.array([1, 0], np.float32), np.array([-1, 1e-3], np.float32)
    np.testing.assert_allclose(slerp(a, b, 0.5), [0, 1], atol=1e-3)


# ---------------------------------------------------------------- whole checkpoints


@pytest.fixture
def pair(make_checkpoint: Callable[..., Path]) -> tuple[Path, Path]:
    return make_checkpoint("first", seed=1), make_checkpoint("second", seed=2)


def test_every_tensor_is_merged(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "BLOCK_ITEMS", 100)  # blocks that do not divide a tensor
    assert (
        main(["merge", "--first", str(pair[0]), "--second", str(pair[1]), "--out", str(tmp_path / "m"), "--weight=0.3"])
        == 0
    )
    first, second, merged = (Checkpoint.open(folder) for folder in (*pair, tmp_path / "m"))
    for name in first.spec.tensor_shapes():
        expected = oracle(first.read(name), second.read(name), 0.3)
        np.testing.assert_allclose(merged.read(name), expected, rtol=1e-5, atol=1e-6)
    assert read_model(tmp_path / "m").spec == merged.spec
    assert (tmp_path / "m" / "tokenizer.json").read_bytes() == (pair[0] / "tokenizer.json").read_bytes()
    assert not list(tmp_path.glob(".m.*"))


@pytest.mark.parametrize("weight", [0, 1])
def test_an_end_is_its_checkpoint(pair: tuple[Path, Path], tmp_path: Path, weight: int) -> None:
    merge(MergeConfig(*pair, tmp_path / "m", weight))
    kept, merged = Checkpoint.open(pair[weight]), Checkpoint.open(tmp_path / "m")
    assert all(merged.read(name).tobytes() == kept.read(name).tobytes() for name in kept.spec.tensor_shapes())


def test_shards_prefixes_and_half_precision_are_read(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    first = make_checkpoint("first", dtype="BF16", n_shards=3, prefix="model.")
    second = make_checkpoint("second", model="context-0.6b", seed=5)
    merge(MergeConfig(first, second, tmp_path / "m"))
    assert Checkpoint.open(tmp_path / "m").files == [tmp_path / "m" / WEIGHTS]


def test_an_opposite_tensor_is_named_and_nothing_is_written(pair: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    spec = ModelSpec.from_config(tiny_config())
    weights, name = random_weights(spec, 1), "layers.1.mlp.up_proj.weight"
    write_weights(pair[1], weights | {name: -weights[name]})
    arguments = ["merge", "--first", str(pair[0]), "--second", str(pair[1]), "--out", str(tmp_path / "m")]
    assert main(arguments) == 2
    assert f"error: tensor {name}: the checkpoints are opposite (180.0000°)" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


REFUSED = {
    "sizes": ({"hidden_size": 96}, "hidden_size is 96, in "),
    "layers": ({"num_hidden_layers": 3}, "n_layers is 3, in "),
    "constants": ({"rope_theta": 1e4, "rope_parameters": None}, "rope_theta is 10000.0, in "),
    "separator": ({"pad_token_id": 7, "eos_token_id": 7, "bos_token_id": 7}, "sep_id is 7, in "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_models_are_refused_by_name(make_checkpoint: Callable[..., Path], tmp_path: Path, case: str) -> None:
    overrides, message = REFUSED[case]
    first, second = make_checkpoint("first"), make_checkpoint("second", **overrides)
    with pytest.raises(CheckpointError, match=message):
        merge(MergeConfig(first, second, tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_another_tokenizer_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = pair[1] / "tokenizer.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value))  # written otherwise, but the same
    merge(MergeConfig(*pair, tmp_path / "m"))
    value["normalizer"] = None
    path.write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=r"another tokenizer than in .* \(normalizer differs\)"):
        merge(MergeConfig(*pair, tmp_path / "again"))


@pytest.mark.parametrize("weight", ["-0.1", "1.5", "nan"])
def test_a_weight_out_of_range_is_refused(pair: tuple[Path, Path], tmp_path: Path, capsys, weight: str) -> None:
    arguments = [
        "merge",
        "--first",
        str(pair[0]),
        "--second",
        str(pair[1]),
        "--out",
        str(tmp_path / "m"),
        f"--weight={weight}",
    ]
    assert main(arguments) == 2
    assert "must be in 0…1" in capsys.readouterr().err


def test_inputs_and_foreign_folders_are_never_replaced(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is one of the checkpoints"):
        MergeConfig(*pair, pair[1])
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("keep me")
    with pytest.raises(ConfigError, match=r"contains notes\.txt"):
        merge(MergeConfig(*pair, tmp_path / "m"))


def test_a_missing_checkpoint_is_one_line(pair: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    arguments = ["merge", "--first", str(pair[0]), "--second", str(tmp_path / "none"), "--out", str(tmp_path / "m")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_full_disk_keeps_what_was_there(pair: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    merge(MergeConfig(*pair, tmp_path / "m"))
    before = (tmp_path / "m" / WEIGHTS).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging, "write_float32_weights", full)
    with pytest.raises(StorageError, match="No space left on device"):
        merge(MergeConfig(*pair, tmp_path / "m", 0.9))
    assert (tmp_path / "m" / WEIGHTS).read_bytes() == before
    assert not list(tmp_path.glob(".m.*"))


def test_blocks_that_do_not_fill_a_tensor_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="w is shorter than its header says: 8 of 12 bytes"):
        write_float32_weights(tmp_path / "x.safetensors", {"w": (3,)}, lambda _: [np.zeros(2)])


PEAK = """
import resource, sys
from pathlib import Path
from pplx_quant.merge import MergeConfig, merge
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge(MergeConfig(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) // 1024)
"""


def test_memory_is_that_of_a_block(tmp_path: Path) -> None:
    config = tiny_config(hidden_size=1024, intermediate_size=3072, num_hidden_layers=6, max_position_embeddings=64)
    pair = [tmp_path / "first", tmp_path / "second"]
    for value, folder in enumerate(pair, start=1):
        write_checkpoint(folder, tiny_config())
        (folder / "config.json").write_text(json.dumps(config))
        shapes = ModelSpec.from_config(config).tensor_shapes()
        write_float32_weights(folder / WEIGHTS, shapes, lambda name: [np.full(shapes[name], value, np.float32)])  # noqa: B023
    megabytes = (pair[0] / WEIGHTS).stat().st_size >> 20
    command = [sys.executable, "-c", PEAK, *map(str, pair), str(tmp_path / "m")]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert megabytes > 220
    assert grown < 150  # 82 when this was written: a few float64 copies of a block
