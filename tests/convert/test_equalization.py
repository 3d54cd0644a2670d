"""Equalization keeps the function of a checkpoint exactly, and makes rough checkpoints as precise as smooth ones."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_tensors
from hypothesis import given
from hypothesis import strategies as st

from pplx_bench.rough.plants import PLANTS, SAME_FUNCTION, write_rough
from pplx_convert import convert, equalization
from pplx_convert.__main__ import main as store_equalization
from pplx_convert.equalization import Equalization, EqualizedCheckpoint, LayerFolds, run_reference
from pplx_convert.parity import ParityReport, probe_rows
from pplx_edge.errors import CheckpointError, ParityError
from pplx_edge.models.qwen3_numpy import encode_rows, layer_states
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.vectors.similarity import paired_cosines
from pplx_edge.weights.artifact import Artifact
from pplx_edge.weights.checkpoint import Checkpoint

SAME_BYTES_PROGRAM = """
import sys
from pathlib import Path
from pplx_convert import convert
print(convert(sys.argv[1], sys.argv[2], sys.argv[3]).fingerprint)
"""


def probe_ids(checkpoint: Checkpoint) -> list[np.ndarray]:
    return [row.ids for row in probe_rows(Tokenizer.open(checkpoint.directory, checkpoint.spec), checkpoint.spec)]


def measured(checkpoint: Checkpoint) -> Equalization:
    return run_reference(checkpoint, probe_ids(checkpoint)).equalization


def unmeasured(source: Path, directory: Path) -> Path:
    """Return a copy of a checkpoint without its stored equalization."""
    ignored = shutil.ignore_patterns("equalization.json", "__pycache__", "*.py")
    return Path(shutil.copytree(source, directory, ignore=ignored))


def delimiters(directory: Path) -> list[int]:
    """Return the ids of a full stop, a comma, a line break and a frequent word."""
    tokenizer = Tokenizer.open(directory, Checkpoint.open(directory).spec)
    return [int(token) for row in tokenizer.text_rows([".", ",", "\n", " the"]) for token in row.ids]


@pytest.fixture(scope="module")
def rough_nano(nano_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano with all six plants."""
    return write_rough(nano_dir, tmp_path_factory.mktemp("rough") / "all", delimiters=delimiters(nano_dir))


@pytest.fixture(scope="module")
def tiny_error(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], float]:
    """Return a function that converts the tiny checkpoint to a format and gives `1 - mean cosine`."""

    @lru_cache
    def error(format: str) -> float:
        return 1 - convert(tiny_dir, tmp_path_factory.mktemp("smooth") / "out", format).parity["mean_cosine"]

    return error


@pytest.mark.parametrize("plant", SAME_FUNCTION)
@pytest.mark.parametrize("model", ["0.6b", "4b"])
def test_plants_keep_the_function(tiny_dirs: dict[str, Path], tmp_path: Path, model: str, plant: str) -> None:
    smooth = Checkpoint.open(tiny_dirs[model])
    rough = Checkpoint.open(write_rough(tiny_dirs[model], tmp_path / "rough", [plant]))
    assert any((smooth.read(name) != rough.read(name)).any() for name in smooth.spec.tensor_shapes())
    for a, b in zip(encode_rows(smooth, probe_ids(smooth)), encode_rows(rough, probe_ids(rough)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("model", ["0.6b", "4b"])
def test_folding_keeps_the_function_to_the_bit(tiny_dirs: dict[str, Path], tmp_path: Path, model: str) -> None:
    rough = Checkpoint.open(write_rough(tiny_dirs[model], tmp_path / "rough"))
    folded = EqualizedCheckpoint(rough, measured(rough))
    changed = [name for name in rough.spec.tensor_shapes() if (folded.read(name) != rough.read(name)).any()]
    assert any("up_proj" in name for name in changed)
    assert any("o_proj" in name for name in changed)
    assert any("k_norm" in name for name in changed)
    for a, b in zip(encode_rows(folded, probe_ids(rough)), encode_rows(rough, probe_ids(rough)), strict=True):
        np.testing.assert_array_equal(a, b)


@given(data=st.data())
def test_any_exponents_fold_exactly(tiny_dir: Path, data: st.DataObject) -> None:
    checkpoint = Checkpoint.open(tiny_dir)
    sizes = {name: len(getattr(LayerFolds.none(checkpoint.spec), name)) for name in LayerFolds.__dataclass_fields__}
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    largest = data.draw(st.integers(0, 24))
    layers = tuple(
        LayerFolds(**{name: rng.integers(-largest, largest + 1, size) for name, size in sizes.items()})
        for _ in range(checkpoint.spec.n_layers)
    )
    there = EqualizedCheckpoint(checkpoint, Equalization(layers))
    inverse = tuple(LayerFolds(**{name: -getattr(layer, name) for name in sizes}) for layer in layers)
    for name, shape in checkpoint.spec.tensor_shapes().items():
        folded = there.read(name)
        if len(shape) == 2:
            start = data.draw(st.integers(0, shape[0]))
            np.testing.assert_array_equal(there.read_block(name, start, shape[0]), folded[start:])
        back = EqualizedCheckpoint(checkpoint, Equalization(inverse))
        np.testing.assert_array_equal(back._folded(name, folded, slice(None)), checkpoint.read(name))


def test_a_divided_stream_is_the_same_function_with_a_smaller_eps(tiny_dir: Path) -> None:
    checkpoint = Checkpoint.open(tiny_dir)
    divided = EqualizedCheckpoint(checkpoint, replace(Equalization.none(checkpoint.spec), residual=5)).divided()
    assert divided.residual == 5
    ids = probe_ids(checkpoint)
    for layer, (a, b) in enumerate(zip(layer_states(checkpoint, ids), layer_states(divided, ids), strict=True)):
        scale = 1 if layer == checkpoint.spec.n_layers + 1 else 2**5
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y * scale, rtol=2e-2, atol=2e-2)  # q and k norms keep eps, so not exactly


def test_rough_nano_is_refused_as_it_is_and_converts_equalized(
    nano_dir: Path, rough_nano: Path, tmp_path: Path
) -> None:
    with pytest.raises(ParityError, match="cosine"):
        convert(rough_nano, tmp_path / "refused", "onnx-int8", equalize=False)
    smooth = convert(nano_dir, tmp_path / "smooth", "onnx-int8")
    rough = convert(rough_nano, tmp_path / "rough", "onnx-int8")
    assert 1 - rough.parity["mean_cosine"] <= 1.5 * (1 - smooth.parity["mean_cosine"])
    assert rough.equalization["residual_divisor"] == 1
    assert rough.equalization["inner"]["exponents"][1] >= 3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy warns of some overflows, by version and processor
@pytest.mark.parametrize("format", ["coreml-fp16", "coreml-int8"])
def test_a_residual_stream_beyond_float16_converts_divided(
    nano_dir: Path, rough_nano: Path, tmp_path: Path, format: str
) -> None:
    pytest.importorskip("coremltools")
    with pytest.raises(ParityError, match="NaN"):
        convert(rough_nano, tmp_path / "refused", format, equalize=False)
    smooth = convert(nano_dir, tmp_path / "smooth", format)
    rough = convert(rough_nano, tmp_path / "rough", format)
    assert rough.equalization["residual_divisor"] > 4096
    assert 1 - rough.parity["mean_cosine"] <= max(1.5 * (1 - smooth.parity["mean_cosine"]), 2e-6)


@pytest.mark.parametrize("format", ["onnx-fp32", "onnx-int8", "mlx-bf16", "mlx-q8", "coreml-fp16", "coreml-int8"])
@pytest.mark.parametrize("plants", [*[(name,) for name in PLANTS], tuple(PLANTS)], ids="-".join)
def test_every_format_converts_every_rough_checkpoint(
    tiny_dir: Path, tiny_error: Callable[[str], float], tmp_path: Path, plants: tuple[str, ...], format: str
) -> None:
    pytest.importorskip({"onnx": "onnx", "mlx": "mlx.core", "coreml": "coremltools"}[format.partition("-")[0]])
    rough = convert(write_rough(tiny_dir, tmp_path / "rough", plants), tmp_path / "out", format)
    # A tiny random model has so few channels that the figures vary with the seed of the plants.
    assert 1 - rough.parity["mean_cosine"] <= 2.5 * tiny_error(format) + 1e-5


def test_a_stored_equalization_is_used_instead_of_measuring(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_rough(tiny_dir, tmp_path / "source")
    fresh = convert(source, tmp_path / "fresh")
    assert store_equalization([str(source)]) == 0
    monkeypatch.setattr(equalization, "_measured", None)  # a call would fail
    stored = convert(source, tmp_path / "stored")
    assert stored.fingerprint == fresh.fingerprint
    assert stored.equalization == fresh.equalization


def test_the_equalization_of_other_weights_is_not_used(tiny_dirs: dict[str, Path], tmp_path: Path) -> None:
    source = unmeasured(tiny_dirs["0.6b"], tmp_path / "source")
    other = write_rough(tiny_dirs["0.6b"], tmp_path / "other")
    assert store_equalization([str(other)]) == 0
    shutil.copy(other / "equalization.json", source)
    assert Equalization.stored(Checkpoint.open(other)) is not None
    assert Equalization.stored(Checkpoint.open(source)) is None


@pytest.mark.parametrize(
    "damage", ["[]", "{", '{"version": 1, "weights": HASHES, "layers": [], "residual": 0}', "deep"]
)
def test_a_malformed_equalization_is_refused_by_name(tiny_dir: Path, tmp_path: Path, damage: str) -> None:
    source = unmeasured(tiny_dir, tmp_path / "source")
    assert store_equalization([str(source)]) == 0
    path = source / "equalization.json"
    content = json.loads(path.read_text())
    if damage == "deep":
        content["layers"][0]["inner"][0] = 10_000
        path.write_text(json.dumps(content))
    else:
        path.write_text(damage.replace("HASHES", json.dumps(content["weights"])))
    with pytest.raises(CheckpointError, match=r"equalization\.json"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nano_comes_with_its_equalization(nano_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equalization, "_measured", None)  # a call would fail
    artifact = convert(nano_dir, tmp_path / "out")
    assert artifact.parity["mean_cosine"] > 0.9992
    assert Artifact.open(tmp_path / "out").equalization["attention"]["folded"] > 0


@pytest.mark.parametrize("format", ["onnx-int8", "coreml-int8"])
def test_nano_converts_to_the_same_bytes_with_other_blas_kernels(nano_dir: Path, tmp_path: Path, format: str) -> None:
    pytest.importorskip({"onnx": "onnx", "coreml": "coremltools"}[format.partition("-")[0]])
    kernels = [{"OPENBLAS_CORETYPE": "Haswell"}, {"OPENBLAS_CORETYPE": "Nehalem", "OPENBLAS_NUM_THREADS": "1"}]
    fingerprints = set()
    for number, variables in enumerate(kernels):
        done = subprocess.run(
            [sys.executable, "-c", SAME_BYTES_PROGRAM, str(nano_dir), str(tmp_path / str(number)), format],
            env=os.environ | variables,
            capture_output=True,
            text=True,
            check=True,
        )
        fingerprints.add(done.stdout.strip())
    assert len(fingerprints) == 1


def test_a_reference_that_overflows_is_an_error(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    directory = make_checkpoint()
    tensors = {name: np.array(Checkpoint.open(directory).read(name)) for name in Checkpoint.open(directory).tensors}
    tensors["layers.1.mlp.up_proj.weight"][:] = 3e38
    save_tensors(directory / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match="overflows in layer 1"):
        convert(directory, tmp_path / "out")


def test_massive_tokens_are_judged_by_the_rough_checkpoint(nano_dir: Path, rough_nano: Path) -> None:
    nano, rough = Checkpoint.open(nano_dir), Checkpoint.open(rough_nano)
    a, b = (np.stack([x.mean(axis=0) for x in encode_rows(c, probe_ids(nano))]) for c in (nano, rough))
    assert paired_cosines(a, b).min() < 0.99999  # another function
    folded = EqualizedCheckpoint(rough, measured(rough))
    report = ParityReport.of_passes(layer_states(rough, probe_ids(rough)), layer_states(folded, probe_ids(rough)))
    assert report.largest_step == 0
