"""Checkpoints to MLX's layout and back, by our own tools and by mlx-lm's."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import ml_dtypes  # noqa: F401 (registers bfloat16 with NumPy, which safetensors needs)
import numpy as np
import pytest
from checkpoints import random_weights, sample_rows, save_tensors, tiny_config, write_checkpoint, write_json
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from pplx_convert.parity import probe_rows
from pplx_edge.errors import CheckpointError, InputError, MissingExtra, ParityError
from pplx_edge.registry import BACKENDS, MLX
from pplx_edge.spec import ModelSpec
from pplx_edge.text.batching import collate
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import SessionOptions, TokenRow
from pplx_edge.weights.artifact import Artifact
from pplx_edge.weights.checkpoint import Checkpoint

mx = pytest.importorskip("mlx.core")
mlx_utils = pytest.importorskip("mlx_lm.utils")
tree_flatten = pytest.importorskip("mlx.utils").tree_flatten

import pplx_convert.mlx.converter  # noqa: E402
import pplx_convert.mlx.plan  # noqa: E402
from pplx_convert import convert  # noqa: E402
from pplx_convert.conversion import ConvertOptions, Job  # noqa: E402
from pplx_convert.equalization import EqualizedCheckpoint, run_reference  # noqa: E402
from pplx_convert.mlx.plan import CHOICES, plan_with_default, sensitivity, size_limited_plan, spend, stored_bytes  # noqa: E402
from pplx_edge.backends.mlx_session import open_session  # noqa: E402
from pplx_edge.models.mlx_quantization import WEIGHT_FORMATS, QuantizationPlan, quantized  # noqa: E402
from pplx_edge.models.mlx_weights import matrices, uniform_plan  # noqa: E402
from pplx_edge.models.qwen3_mlx import Model, ModelArgs  # noqa: E402

IDS = sample_rows((30,), seed=8)[0]


@pytest.fixture(scope="module", autouse=True)
def on_the_processor() -> Iterator[None]:
    """Pin MLX to the CPU, whose results have tight bounds on every machine."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose every row divides into groups of 64."""
    config = tiny_config(hidden_size=128, intermediate_size=192)
    return write_checkpoint(tmp_path_factory.mktemp("source") / "tiny", config, seed=3)


@pytest.fixture(scope="module")
def artifacts(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    base = tmp_path_factory.mktemp("mlx")
    return {format: convert(source, base / format, format) for format in MLX.formats}


def states(directory: Path) -> np.ndarray:
    return open_session(directory).token_states(collate([TokenRow(IDS, ())], 0))[0]


def mlx_lm_model(directory: Path) -> tuple[Model, dict]:
    """Load a directory with mlx-lm's own loader, which gets our classes through its hook."""
    return mlx_utils.load_model(directory, get_model_classes=lambda config: (Model, ModelArgs))


def states_by_mlx_lm(directory: Path) -> np.ndarray:
    model, _ = mlx_lm_model(directory)
    return np.array(model(mx.array(IDS[None]))[0])


# What is written


@pytest.mark.parametrize("format", MLX.formats)
def test_every_format_is_written_with_its_figures(artifacts: dict[str, Artifact], format: str) -> None:
    artifact = artifacts[format]
    assert artifact.format == format
    assert 0.9 < artifact.parity["min_cosine"] <= artifact.parity["mean_cosine"] <= 1
    assert len(artifact.parity["layer_cosines"]) == 2 + 2
    assert {"model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json"} <= set(artifact.files)
    artifact.verify()


def test_fewer_bits_take_fewer_bytes_and_stray_further(artifacts: dict[str, Artifact]) -> None:
    size = {name: artifact.files["model.safetensors"]["bytes"] for name, artifact in artifacts.items()}
    drift = {name: 1 - artifact.parity["mean_cosine"] for name, artifact in artifacts.items()}
    order = ["mlx-bf16", "mlx-q8", "mlx-mixed", "mlx-q4"]
    assert sorted(order, key=lambda name: -size[name]) == order
    assert sorted(order, key=lambda name: drift[name]) == order


@pytest.mark.parametrize("format", ["mlx-bf16", "mlx-q8", "mlx-mixed"])
def test_the_file_is_what_safetensors_and_mlx_read(artifacts: dict[str, Artifact], source: Path, format: str) -> None:
    path = artifacts[format].path("model.safetensors")
    with safe_open(path, "mlx") as file:
        assert file.metadata() == {"format": "mlx"}
        read = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    loaded = mx.load(str(path))
    assert sorted(loaded) == sorted(read)
    for name, array in read.items():
        assert array.dtype == loaded[name].dtype
        assert mx.array_equal(array, loaded[name])
    assert path.stat().st_mode & 0o777 == 0o644


def test_weights_are_quantized_from_the_equalized_checkpoint(artifacts: dict[str, Artifact], source: Path) -> None:
    checkpoint = Checkpoint.open(source)
    ids = [row.ids for row in probe_rows(Tokenizer.open(source, checkpoint.spec), checkpoint.spec)]
    equalized = EqualizedCheckpoint(checkpoint, run_reference(checkpoint, ids).equalization)
    loaded = mx.load(str(artifacts["mlx-q8"].path("model.safetensors")))
    for name in ("embed_tokens", "layers.1.mlp.down_proj"):
        weight = mx.array(equalized.read(f"{name}.weight"))
        for part, array in quantized(weight, WEIGHT_FORMATS["q8"]).items():
            assert mx.array_equal(loaded[f"model.{name}.{part}"], array)


def test_the_same_source_gives_the_same_bytes(artifacts: dict[str, Artifact], source: Path, tmp_path: Path) -> None:
    again = convert(source, tmp_path / "again", "mlx-q4")
    assert again.files == artifacts["mlx-q4"].files


def test_large_models_are_sharded(source: Path, tmp_path: Path, artifacts: dict[str, Artifact], monkeypatch) -> None:
    monkeypatch.setattr(pplx_convert.mlx.converter, "SHARD_BYTES", 100_000)
    artifact = convert(source, tmp_path / "sharded", "mlx-q8")
    shards = [name for name in artifact.files if name.endswith(".safetensors")]
    assert len(shards) > 2
    index = json.loads(artifact.path("model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    np.testing.assert_array_equal(states(artifact.directory), states(artifacts["mlx-q8"].directory))
    np.testing.assert_array_equal(states_by_mlx_lm(artifact.directory), states_by_mlx_lm(artifacts["mlx-q8"].directory))


# mlx-lm


@pytest.mark.parametrize("format", MLX.formats)
def test_mlx_lm_opens_ours_and_gives_the_same_states(artifacts: dict[str, Artifact], format: str) -> None:
    directory = artifacts[format].directory
    session = open_session(directory)
    ours = np.array(session.model(mx.array(IDS[None]))[0])
    np.testing.assert_array_equal(states_by_mlx_lm(directory), ours)


@pytest.mark.parametrize(("mode", "bits"), [("affine", 8), ("affine", 4), ("mxfp4", None), ("mxfp8", None)])
def test_ours_opens_what_mlx_lm_saves(
    artifacts: dict[str, Artifact], tmp_path: Path, mode: str, bits: int | None, capsys
) -> None:
    model, config = mlx_lm_model(artifacts["mlx-bf16"].directory)
    model, config = mlx_utils.quantize_model(model, config, None, bits, mode=mode)
    mlx_utils.save_model(tmp_path, model)
    mlx_utils.save_config(config, tmp_path / "config.json")
    theirs = np.array(model(mx.array(IDS[None]))[0])
    np.testing.assert_array_equal(np.array(open_session(tmp_path).model(mx.array(IDS[None]))[0]), theirs)


def test_ours_opens_what_mlx_lm_saves_with_mixed_bits(artifacts: dict[str, Artifact], tmp_path: Path, capsys) -> None:
    model, config = mlx_lm_model(artifacts["mlx-bf16"].directory)

    def predicate(path: str, module: object) -> bool | dict:
        if "layers.0" in path:
            return {"group_size": 32, "bits": 8, "mode": "affine"}
        return "v_proj" not in path

    model, config = mlx_utils.quantize_model(model, config, 64, 4, quant_predicate=predicate)
    mlx_utils.save_model(tmp_path, model)
    mlx_utils.save_config(config, tmp_path / "config.json")
    theirs = np.array(model(mx.array(IDS[None]))[0])
    np.testing.assert_array_equal(np.array(open_session(tmp_path).model(mx.array(IDS[None]))[0]), theirs)


# mlx-embeddings, where it is installed; it is no dependency, as it is under the GPL


@pytest.mark.parametrize("format", MLX.formats)
def test_mlx_embeddings_opens_ours_and_gives_the_same_states(artifacts: dict[str, Artifact], format: str) -> None:
    utils = pytest.importorskip("mlx_embeddings.utils")
    directory = artifacts[format].directory
    theirs = utils.load_model(directory, get_model_classes=lambda config: (Model, ModelArgs, None, None))
    ours = open_session(directory).model
    ids = mx.array(IDS[None])
    np.testing.assert_array_equal(np.array(theirs(ids)), np.array(ours(ids)))


def test_ours_opens_what_mlx_embeddings_saves(artifacts: dict[str, Artifact], tmp_path: Path) -> None:
    utils = pytest.importorskip("mlx_embeddings.utils")
    source = artifacts["mlx-q8"].directory
    model = utils.load_model(source, get_model_classes=lambda config: (Model, ModelArgs, None, None))
    utils.save_weights(tmp_path, dict(tree_flatten(model.parameters())))
    utils.save_config(utils.load_config(source), tmp_path / "config.json")
    np.testing.assert_array_equal(states(tmp_path), states(source))


# float16


@pytest.fixture(scope="module")
def large(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose residual stream is 65,536 times as large: float16 overflows, unless the stream is divided."""
    directory = tmp_path_factory.mktemp("large") / "tiny"
    shutil.copytree(source, directory)
    checkpoint = Checkpoint.open(source)
    weights = {name: checkpoint.read(name) for name in checkpoint.spec.tensor_shapes()}
    for name in weights:
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            weights[name] = weights[name] * np.float32(1 << 16)
    save_tensors(directory / "model.safetensors", weights)
    return directory


def test_float16_divides_the_residual_stream(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = convert(large, tmp_path / "out", "mlx-fp16")
    divisor = json.loads(artifact.path("config.json").read_text())["residual_divisor"]
    assert divisor == artifact.equalization["residual_divisor"] > 16
    assert artifact.weights["matrices"] == {"fp16": 15}
    assert artifact.parity["min_cosine"] > 0.99999
    monkeypatch.setattr(EqualizedCheckpoint, "divided", lambda self: self)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        convert(large, tmp_path / "whole", "mlx-fp16")


def test_a_checkpoint_opens_in_float16_without_a_conversion(large: Path) -> None:
    batch = collate([TokenRow(IDS, ())], 0)
    found, exact = (
        open_session(large, SessionOptions(weights=weights)).token_states(batch)[0] for weights in ("fp16", "fp32")
    )
    np.testing.assert_allclose(found, exact, atol=0.02)


def test_other_programs_refuse_float16(large: Path, tmp_path: Path) -> None:
    directory = convert(large, tmp_path / "large", "mlx-fp16").directory
    with pytest.raises(ValueError, match="not supported"):
        mlx_utils.load_model(directory)
    with pytest.raises(InputError, match="is a conversion to float16"):
        convert(directory, tmp_path / "again", "onnx-fp32")


# Options


def test_single_matrices_are_kept_as_overrides_say(source: Path, tmp_path: Path) -> None:
    options = ConvertOptions(overrides={"layers.*": "q8", "layers.1.mlp.*": "bf16", "embed_tokens": "mxfp8"})
    artifact = convert(source, tmp_path / "out", "mlx-q4", options=options)
    assert artifact.weights["matrices"] == {"mxfp8": 1, "q8": 11, "bf16": 3}
    config = json.loads(artifact.path("config.json").read_text())
    assert config["quantization"] == config["quantization_config"]
    assert config["quantization"]["model.layers.1.mlp.up_proj"] is False
    np.testing.assert_allclose(states_by_mlx_lm(artifact.directory)[:5], states(artifact.directory)[:5], atol=0.1)


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("mlx-q4", ConvertOptions(overrides={"layers.9.*": "q8"}), "matches no matrix"),
        ("mlx-q4", ConvertOptions(overrides={"layers.0.*": "q5"}), "unknown quantization 'q5'"),
        ("mlx-q4", ConvertOptions(max_mb=5), "max_mb is not an option of mlx-q4"),
        ("onnx-int8", ConvertOptions(overrides={"*": "q8"}), "overrides is not an option of onnx-int8"),
    ],
)
def test_options_that_cannot_be_had_are_refused(source: Path, tmp_path: Path, format, options, message) -> None:
    with pytest.raises(InputError, match=message):
        convert(source, tmp_path / "out", format, options=options)
    assert not list(tmp_path.iterdir())


def test_rows_that_do_not_divide_stay_in_floats_unless_asked_for(tiny_dir: Path, tmp_path: Path) -> None:
    artifact = convert(tiny_dir, tmp_path / "out", "mlx-q8")  # 160 is no multiple of 64
    assert artifact.weights["matrices"] == {"q8": 13, "bf16": 2}
    with pytest.raises(InputError, match=r"rows of layers\.0\.mlp\.down_proj have 160 weights"):
        convert(tiny_dir, tmp_path / "other", "mlx-q8", options=ConvertOptions(overrides={"*.down_proj": "q8"}))


# Mixed plans


def test_a_budget_is_kept_and_used(source: Path, artifacts: dict[str, Artifact], monkeypatch) -> None:
    monkeypatch.setattr(pplx_convert.mlx.plan, "_MEGABYTE", 1000)  # of a tiny model
    checkpoint, rows = Checkpoint.open(source), [TokenRow(IDS, ())]
    four, eight = (artifacts[name].files["model.safetensors"]["bytes"] for name in ("mlx-q4", "mlx-q8"))
    sizes = []
    for budget in (four // 1000 + 5, (four + eight) // 2000, eight // 1000 + 5):
        plan = size_limited_plan(checkpoint, rows, budget)
        floats = sum(2 * shape[0] for shape in checkpoint.spec.tensor_shapes().values() if len(shape) == 1)
        sizes.append(floats + sum(stored_bytes(s, plan.weight_format(p)) for p, s in matrices(checkpoint.spec).items()))
        assert budget - 12 <= sizes[-1] / 1000 <= budget
    with pytest.raises(InputError, match=r"max_mb 10: this model needs at least \d+ MB"):
        size_limited_plan(checkpoint, rows, 10)


@given(st.data())
@settings(max_examples=50)
def test_spending_stays_within_the_room_and_leaves_none_that_would_help(data: st.DataObject) -> None:
    paths = [f"m{i}" for i in range(data.draw(st.integers(1, 5)))]
    sizes = {path: {s: stored_bytes((data.draw(st.integers(1, 9)), 64), s) for s in CHOICES} for path in paths}
    drift = {
        path: dict(zip(CHOICES, sorted(data.draw(st.tuples(*[st.floats(0, 1)] * 3)), reverse=True), strict=True))
        for path in paths
    }
    least = sum(min(size.values()) for size in sizes.values())
    room = least + data.draw(st.integers(0, 3000))
    chosen = spend(drift, sizes, room)
    left = room - sum(sizes[path][weight_format] for path, weight_format in chosen.items())
    assert left >= 0
    for path, now in chosen.items():
        for to in CHOICES:
            helps = drift[path][to] < drift[path][now] and sizes[path][to] > sizes[path][now]
            assert not helps or sizes[path][to] - sizes[path][now] > left


def test_sensitivity_finds_what_adds_most_to_the_stream(tmp_path: Path) -> None:
    config = tiny_config(hidden_size=128, intermediate_size=192)
    weights = random_weights(ModelSpec.from_config(config), seed=5)
    weights["layers.1.self_attn.o_proj.weight"] *= 10
    write_json(tmp_path / "config.json", config)
    save_tensors(tmp_path / "model.safetensors", weights)
    drift = sensitivity(Checkpoint.open(tmp_path), [TokenRow(IDS, ())])
    by_path = {path: by_format[WEIGHT_FORMATS["q4"]] for path, by_format in drift.items() if path != "embed_tokens"}
    assert max(by_path, key=lambda path: by_path[path]).startswith("layers.1.self_attn.")
    assert by_path["layers.1.self_attn.o_proj"] > 2 * by_path["layers.0.self_attn.o_proj"]
    for by_format in drift.values():
        assert by_format[WEIGHT_FORMATS["q4"]] > by_format[WEIGHT_FORMATS["q8"]] > by_format[None]


def test_the_most_frequent_format_is_the_default() -> None:
    q4, q8 = WEIGHT_FORMATS["q4"], WEIGHT_FORMATS["q8"]
    assert plan_with_default({"a": q4, "b": q8, "c": q8, "d": None}) == QuantizationPlan(q8, {"a": q4, "d": None})
    assert plan_with_default({"a": None}) == QuantizationPlan()


# Faults


@pytest.mark.parametrize("fault", ["a wrong weight", "a swapped half of the rotation", "a causal mask"])
def test_parity_catches_a_planted_fault(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    from pplx_edge.models import qwen3_mlx

    if fault == "a wrong weight":
        real = Checkpoint.read_block

        def wrong(self: Checkpoint, name: str, start: int, stop: int) -> np.ndarray:
            block = np.array(real(self, name, start, stop))
            if name == "layers.1.self_attn.k_proj.weight" and self.directory == source:  # not when it is opened again
                block[0], block[1] = block[1].copy(), block[0].copy()
            return block

        monkeypatch.setattr(Checkpoint, "read_block", wrong)
    elif fault == "a swapped half of the rotation":
        monkeypatch.setattr(qwen3_mlx.nn, "RoPE", _swapped(qwen3_mlx.nn.RoPE))
    else:
        attention = mx.fast.scaled_dot_product_attention
        monkeypatch.setattr(
            qwen3_mlx.mx.fast,
            "scaled_dot_product_attention",
            lambda q, k, v, *, scale, mask: attention(q, k, v, scale=scale, mask="causal"),
        )
    with pytest.raises(ParityError):
        convert(source, tmp_path / "out", "mlx-bf16")
    assert not list(tmp_path.iterdir())


def _swapped(rope: type) -> Callable[..., object]:
    """Interleaved rotation where the halves are rotated."""
    return lambda size, traditional, base: rope(size, traditional=True, base=base)


# The writer


def test_a_plan_leaves_out_what_does_not_fit() -> None:
    spec = ModelSpec.from_config(tiny_config())
    plan = uniform_plan(spec, WEIGHT_FORMATS["q8"])
    assert {path for path, weight_format in plan.overrides.items() if weight_format is None} == {
        "layers.0.mlp.down_proj",
        "layers.1.mlp.down_proj",
    }
    assert Job.__dataclass_fields__["options"].default == ConvertOptions()


def test_a_missing_package_is_an_error_with_the_command(source: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(BACKENDS, "mlx", replace(MLX, package="no_such_package"))
    with pytest.raises(MissingExtra, match=r"the mlx backend needs: pip install 'pplx-edge\[mlx\]'"):
        convert(source, tmp_path / "out", "mlx-q8")


@pytest.mark.parametrize("format", MLX.formats)
def test_decoded_weights_in_numpy_are_the_model_that_mlx_runs(
    artifacts: dict[str, Artifact], source: Path, format: str
) -> None:
    """The model in NumPy that replaces MLX where a CPU would take an hour differs only by rounding to bfloat16.

    MLX decodes affine weights in bfloat16, `scale · code` before adding the bias, which loses more than eight bits do.
    """
    decodes_roughly = {"mlx-q8", "mlx-q4", "mlx-mixed"}
    artifact = artifacts[format]
    job = Job(
        checkpoint=Checkpoint.open(source),
        artifact_format=format,
        directory=artifact.directory,
        rows=[TokenRow(IDS, ())],
        step=lambda: None,
    )
    decoded = list(pplx_convert.mlx.converter._decoded_states(job))
    run = list(pplx_convert.mlx.converter._row_states(job))
    assert len(decoded) == len(run) == 4
    for (a,), (b,) in zip(decoded, run, strict=True):
        a, b = a.mean(0), b.mean(0)
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert cosine > (0.998 if format in decodes_roughly else 0.9998)
    assert artifact.weights["checked"] == "run by MLX"


def test_large_models_are_checked_by_numpy_on_a_processor(source: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(pplx_convert.mlx.converter, "_MOST_PRODUCTS", 1)
    artifact = convert(source, tmp_path / "out", "mlx-q8")
    if not mx.metal.is_available():
        assert artifact.weights["checked"] == "weights decoded, run by NumPy in float32"
    assert artifact.parity["min_cosine"] > 0.999
