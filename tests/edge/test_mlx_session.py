"""The MLX session against the NumPy model and torch, on the processor: exact but slow, so models and rows are small."""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import random_weights, sample_rows, save_tensors, tiny_config, write_json
from hypothesis import given, settings
from hypothesis import strategies as st
from official_graph import torch_encoder

import pplx_edge
from pplx_edge import backends
from pplx_edge.errors import CheckpointError, InputError, UnsupportedModel
from pplx_edge.models.qwen3_numpy import encode_rows
from pplx_edge.registry import MLX
from pplx_edge.spec import ModelSpec
from pplx_edge.text.batching import collate
from pplx_edge.types import SessionOptions, Span, TokenBatch, TokenRow
from pplx_edge.vectors.codes import int8_codes
from pplx_edge.weights import checkpoint as checkpoint_module
from pplx_edge.weights.checkpoint import Checkpoint

mx = pytest.importorskip("mlx.core")

from pplx_edge.backends.mlx_session import (  # noqa: E402
    MlxSession,
    open_session,
    padded_length,
    row_groups,
    span_sums,
)
from pplx_edge.models import mlx_weights, qwen3_mlx  # noqa: E402
from pplx_edge.models.mlx_quantization import WEIGHT_FORMATS, QuantizationPlan, WeightFormat, quantized  # noqa: E402

LENGTHS = (33, 1, 17, 16, 7, 40)
FP32 = SessionOptions(weights="fp32")


@pytest.fixture(scope="module", autouse=True)
def on_the_processor() -> Iterator[None]:
    """Pin MLX to the CPU, whose results have tight bounds on every machine."""
    before = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(before)


@pytest.fixture(scope="module")
def session(tiny_dir: Path) -> MlxSession:
    return open_session(tiny_dir, FP32)


def reference(directory: Path, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    return encode_rows(Checkpoint.open(directory), rows)


def chunked(ids: np.ndarray, n_chunks: int) -> TokenRow:
    """A row with several spans, one of them empty."""
    ends = np.linspace(0, len(ids), n_chunks + 1).astype(int)
    return TokenRow(ids, (*zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True), (3, 3)))


# The model


@pytest.mark.parametrize("model", ["0.6b", "4b"])
def test_states_equal_the_reference(tiny_dirs: dict[str, Path], model: str) -> None:
    rows = sample_rows(LENGTHS, seed=1)
    batch = collate([TokenRow(ids, ()) for ids in rows], 0)
    states = open_session(tiny_dirs[model], FP32).token_states(batch)
    for found, expected in zip(states, reference(tiny_dirs[model], rows), strict=True):
        np.testing.assert_allclose(found[: len(expected)], expected, atol=2e-4)
        assert not found[len(expected) :].any()


def test_padding_on_the_left_changes_nothing(session: MlxSession) -> None:
    rows = sample_rows((9, 20), seed=2)
    right = collate([TokenRow(ids, ((0, len(ids)), (2, 5))) for ids in rows], 0)
    left = TokenBatch(right.input_ids.copy(), right.attention_mask.copy(), right.spans)
    left.input_ids[0], left.attention_mask[0] = np.roll(right.input_ids[0], 11), np.roll(right.attention_mask[0], 11)
    np.testing.assert_array_equal(session.span_means(left), session.span_means(right))
    np.testing.assert_array_equal(session.token_states(left)[0, 11:], session.token_states(right)[0, :9])


def test_span_means_are_means_of_reference_states(session: MlxSession, tiny_dir: Path) -> None:
    rows = sample_rows(LENGTHS, seed=4)
    batch = collate([chunked(ids, 1 + i) for i, ids in enumerate(rows)], 0)
    states = reference(tiny_dir, rows)
    expected = [
        states[span.row][span.start : span.stop].mean(axis=0) if span.n_tokens else np.zeros(session.spec.dim)
        for span in batch.spans
    ]
    found = session.span_means(batch)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_spans_may_overlap_and_come_in_any_order(session: MlxSession) -> None:
    (ids,) = sample_rows((24,), seed=5)
    bounds = ((0, 24), (20, 24), (0, 3), (1, 2), (0, 24))
    found = session.span_means(collate([TokenRow(ids, bounds)], 0))
    for bound, mean in zip(bounds, found, strict=True):
        np.testing.assert_array_equal(session.span_means(collate([TokenRow(ids, (bound,))], 0))[0], mean)


def test_bf16_differs_from_torch_by_rounding_only(nano_dir: Path) -> None:
    """On nano, whose means reach 16, torch's own bf16 moves codes by 5; the residual in float32 keeps ours below."""
    texts = ["What is Deep Learning?", "Wie hoch ist die Gebühr?", "日本の首都はどこですか。"]
    with pplx_edge.load(nano_dir, backend="mlx") as model:
        found = model.encode(texts, "float32")
        rows = [row.ids for row in model.tokenizer.text_rows(texts)]
    encoder = torch_encoder(nano_dir)
    with torch.no_grad():
        expected = np.stack([encoder(torch.tensor(ids[None]))[0].mean(0).numpy() for ids in rows])
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() >= 0.9999
    assert np.abs(int8_codes(found).astype(int) - int8_codes(expected)).max() <= 4


@pytest.mark.parametrize(("weights", "least"), [("q8", 0.999), ("mxfp8", 0.995), ("q4", 0.94), ("nvfp4", 0.9)])
def test_quantizing_at_load_stays_close(session: MlxSession, tiny_dir: Path, weights: str, least: float) -> None:
    batch = collate([TokenRow(ids, ((0, len(ids)),)) for ids in sample_rows((12, 30), seed=6)], 0)
    exact, found = (
        session.span_means(batch),
        open_session(tiny_dir, SessionOptions(weights=weights)).span_means(batch),
    )
    cosines = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
    assert least <= cosines.min() < 1 - 1e-7


# Shapes


@given(st.integers(1, 1 << 16))
def test_padded_lengths_are_few_and_add_at_most_a_quarter(n_tokens: int) -> None:
    length = padded_length(n_tokens)
    assert length >= n_tokens
    assert length <= max(16, n_tokens * 1.25)
    assert padded_length(length) == length


def test_there_are_four_lengths_per_octave() -> None:
    assert len({padded_length(n) for n in range(16, 32768)}) <= 4 * 11 + 1


@given(st.lists(st.integers(0, 200), max_size=40), st.integers(1, 500))
def test_every_row_with_tokens_is_in_one_pass(lengths: list[int], max_tokens: int) -> None:
    groups = list(row_groups(lengths, max_tokens))
    assert sorted(row for rows in groups for row in rows) == [i for i, n in enumerate(lengths) if n]
    for rows in groups:
        of_rows = [lengths[row] for row in rows]
        assert of_rows == sorted(of_rows, reverse=True)
        assert len(rows) == 1 or len(rows) * max(of_rows) <= max_tokens
        alike = [n for n in of_rows if padded_length(n) == padded_length(max(of_rows))]
        assert len(alike) == len(rows) or sum(of_rows[:-1]) < 512


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), min_size=1, max_size=12), st.integers(0, 9))
@settings(max_examples=30)
def test_span_sums_are_sums(spans: list[tuple[int, int]], seed: int) -> None:
    states = np.random.default_rng(seed).standard_normal((100, 8), dtype=np.float32)
    starts, counts = (np.array(values) for values in zip(*spans, strict=True))
    order, sums = span_sums(mx.array(states), starts, counts)
    for i, found in zip(order, np.array(sums), strict=True):
        np.testing.assert_allclose(found, states[starts[i] : starts[i] + counts[i]].sum(0), atol=1e-4)
    assert sorted(order) == list(range(len(spans)))


# Rounding


@pytest.mark.parametrize("name", sorted(WEIGHT_FORMATS))
@given(seed=st.integers(0, 50))
@settings(max_examples=10)
def test_mlx_unpacks_our_codes(name: str, seed: int) -> None:
    weight_format = WEIGHT_FORMATS[name]
    weight = np.random.default_rng(seed).standard_normal((6, 128), dtype=np.float32)
    weight[0] = 0
    weight[1, :64] = 3
    parts = quantized(mx.array(weight), weight_format)
    found = mx.dequantize(
        parts["weight"],
        parts["scales"],
        parts.get("biases"),
        weight_format.group_size,
        weight_format.bits,
        mode=weight_format.mode,
    )
    error = np.abs(np.array(found.astype(mx.float32)) - weight)
    assert not error[0].any()
    assert np.linalg.norm(error) / np.linalg.norm(weight) < {8: 0.04, 4: 0.15}[weight_format.bits]


def test_eight_bits_are_closer_than_those_of_mlx_with_scales_of_the_same_size() -> None:
    weight = mx.array(np.random.default_rng(0).standard_normal((256, 1024), dtype=np.float32))
    ours, theirs = quantized(weight, WEIGHT_FORMATS["q8"]), mx.quantize(weight.astype(mx.bfloat16), 64, 8)

    def error(codes: object, scales: object, biases: object) -> float:
        found = mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), 64, 8)
        return float(mx.linalg.norm(found - weight) / mx.linalg.norm(weight))

    assert error(ours["weight"], ours["scales"], ours["biases"]) < 0.75 * error(*theirs)


# The GPU of a Mac


@pytest.mark.apple
@pytest.mark.parametrize("model", ["0.6b", "4b"])
@pytest.mark.parametrize(
    ("weights", "least"), [("fp32", 0.9999), ("fp16", 0.9999), ("bf16", 0.999), ("q8", 0.998), ("mxfp8", 0.99)]
)
def test_span_means_on_the_gpu_are_close_to_the_reference(
    tiny_dirs: dict[str, Path], model: str, weights: str, least: float
) -> None:
    """In float32 too, an M5 multiplies with 10 bits of fraction (TF32), and results depend on the batch."""
    rows = sample_rows(LENGTHS, seed=4)
    batch = collate([TokenRow(ids, ((0, len(ids)),)) for ids in rows], 0)
    expected = np.stack([states.mean(axis=0) for states in reference(tiny_dirs[model], rows)])
    mx.set_default_device(mx.gpu)
    try:
        found = open_session(tiny_dirs[model], SessionOptions(weights=weights)).span_means(batch)
    finally:
        mx.set_default_device(mx.cpu)
    assert least_cosine(found, expected) > least


# Work per layer


def kernels_of_a_layer(encoder: Any, rows: qwen3_mlx.Rows, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the kernels of the second layer, including the casts of what enters it.

    The CPU build would decompose fused operators, so each is replaced by a constant and counted, along with the casts
    that MLX inserts for inputs of another type than the result. The rest is counted in the exported graph.
    """
    counts: Counter[str] = Counter()
    roots: list[Any] = []

    def record(name: str, n_inputs: int, dtype_of: Callable[..., Any], casts: bool = True) -> Callable[..., Any]:
        def run(*inputs: Any, **_: object) -> Any:
            dtype = dtype_of(*inputs)
            counts[name] += 1
            counts["AsType"] += sum(array.dtype != dtype for array in inputs[:n_inputs]) if casts else 0
            roots.extend(inputs[:n_inputs])
            return mx.zeros(inputs[0].shape, dtype)

        return run

    def first(x: Any, *_: object) -> Any:
        return x.dtype

    def add_norm(x: Any, y: Any, weight: Any, eps: float, dtype: Any) -> tuple[Any, Any]:
        counts["AddNormCast"] += 1
        roots.extend((x, y))
        return mx.zeros(x.shape), mx.zeros(x.shape, dtype)

    with monkeypatch.context() as patch:
        patch.setattr(mx.fast, "rms_norm", record("RMSNorm", 2, lambda x, w, _: (x.reshape(-1)[:1] + w[:1]).dtype))
        patch.setattr(mx.fast, "rope", record("RoPE", 1, first))
        patch.setattr(mx.fast, "scaled_dot_product_attention", record("ScaledDotProductAttention", 3, first))
        patch.setattr(qwen3_mlx, "_added", record("AddCast", 2, first, casts=False))
        patch.setattr(qwen3_mlx, "fused_add_norm", add_norm)
        patch.setattr(qwen3_mlx, "_gated", record("SiluMultiply", 2, first))
        x = mx.zeros((rows.n_rows * rows.length if rows.packed is None else rows.packed.size, encoder.norm.weight.size))
        pending = x.astype(encoder.layers[0].self_attn.q_norm.weight.dtype)
        mx.eval(x, pending)
        roots += encoder.layers[1](x, pending, rows)
        graph = io.StringIO()
        mx.export_to_dot(graph, *roots)
    kept = ("Matmul", "QuantizedMatmul", "AsType", "Gather", "Add", "Multiply", "Sigmoid")
    counts.update(name for name in re.findall(r'label ="(\w+)"', graph.getvalue()) if name in kept)
    return dict(counts)


def test_a_layer_runs_few_kernels_and_casts(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count what Metal would run for a layer of packed bfloat16 tokens, from the graph."""
    model = mlx_weights.open_model(tiny_dir, "bf16").model
    kernels = kernels_of_a_layer(model, qwen3_mlx.Rows.of_lengths((5, 3)), monkeypatch)
    assert kernels == {
        "RMSNorm": 4,
        "Matmul": 7,
        "RoPE": 2,
        "ScaledDotProductAttention": 1,
        "AddCast": 2,  # the residual stream, compiled into one kernel each
        "SiluMultiply": 1,
        "AsType": 2,  # what the norms of the float32 stream return, for the products
        "Gather": 4,  # q, k and v to padded rows, and back
    }
    without_padding = kernels_of_a_layer(model, qwen3_mlx.Rows.of_lengths((4, 4)), monkeypatch)
    assert without_padding == {name: count for name, count in kernels.items() if name != "Gather"}
    for norm in (model.layers[1].input_layernorm, model.layers[1].post_attention_layernorm):
        norm.fused = True
    fused = kernels_of_a_layer(model, qwen3_mlx.Rows.of_lengths((5, 3)), monkeypatch)
    replaced = {"RMSNorm": 2, "AddNormCast": 2, "AsType": 0}  # the norms of queries and keys remain
    assert fused == {name: n for name, n in kernels.items() if name != "AddCast"} | replaced


# The choice of weights


@pytest.mark.parametrize(
    ("architecture", "gigabytes", "expected"),
    [
        ("applegpu_g13s", 11, "fp16"),  # M1 Max
        ("applegpu_g14g", 11, "fp16"),  # M2
        ("applegpu_g15s", 11, "bf16"),  # M3
        ("applegpu_g17s", 100, "bf16"),  # M5
        ("applegpu_g13g", 1.9, "q8"),
        ("applegpu_g16s", 1.9, "q8"),
    ],
)
def test_weights_follow_the_gpu_and_its_memory(
    monkeypatch: pytest.MonkeyPatch, architecture: str, gigabytes: float, expected: str
) -> None:
    spec = replace(ModelSpec.from_config(tiny_config()), vocab_size=9_000_000)  # 0.58 G parameters
    device = {"architecture": architecture, "max_recommended_working_set_size": int(gigabytes * 1e9)}
    monkeypatch.setattr(mlx_weights.mx, "device_info", lambda: device)
    assert mlx_weights.default_weights(spec) == "bf16"  # without Metal
    monkeypatch.setattr(mlx_weights.mx.metal, "is_available", lambda: True)
    warned = pytest.warns(UserWarning, match=r"bf16 would take 1\.2 GB") if expected == "q8" else nullcontext()
    with warned:
        assert mlx_weights.default_weights(spec) == expected


def test_blocks_of_rows_are_quantized_as_the_whole_matrix(
    tiny_dir: Path, session: MlxSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = collate([TokenRow(ids, ()) for ids in sample_rows((12, 30), seed=6)], 0)
    options = SessionOptions(weights="q8")
    whole = open_session(tiny_dir, options).token_states(batch)
    monkeypatch.setattr(checkpoint_module, "_BLOCK_ROWS", 7)
    np.testing.assert_array_equal(open_session(tiny_dir, options).token_states(batch), whole)


# Options and bad input


def test_options_of_other_backends_are_refused(tiny_dir: Path) -> None:
    with pytest.raises(InputError, match="threads is not an option of the mlx backend; its options are weights"):
        backends.open_session(MLX, tiny_dir, SessionOptions(threads=2))


def test_the_error_for_an_unknown_weight_format_lists_the_known_ones(tiny_dir: Path) -> None:
    with pytest.raises(InputError, match="unknown quantization 'q3': choose one of q8, q4"):
        open_session(tiny_dir, SessionOptions(weights="q3"))


def test_memory_limits_the_tokens_of_a_pass(tiny_dir: Path) -> None:
    before = mx.set_memory_limit(1 << 40)
    try:
        bounded = open_session(tiny_dir, SessionOptions(weights="fp32", memory_mb=1))
        assert bounded.policy.max_tokens < 200
        spec = bounded.spec
        assert bounded.policy.max_tokens * spec.activation_bytes + 4 * spec.n_parameters <= 1_000_000
    finally:
        mx.set_memory_limit(before)


def test_the_error_for_too_little_memory_says_how_much_is_needed(make_checkpoint: Callable[..., Path]) -> None:
    big = make_checkpoint(vocab_size=20_000, hidden_size=128)
    with pytest.raises(InputError, match=r"memory_mb 5: this model needs at least \d+"):
        open_session(big, SessionOptions(memory_mb=5))


def test_the_session_names_its_device(session: MlxSession) -> None:
    assert session.device.split()[0] == mx.default_device().type.name


# Repositories that MLX tools write


def write_mlx(directory: Path, plan: QuantizationPlan, *, prefix: str = "model.", **config: object) -> Path:
    """Write a repository as MLX tools do, with the quantizer and the writer of MLX, and return its directory."""
    spec = ModelSpec.from_config(tiny_config(hidden_size=128, intermediate_size=192))
    tensors = {}
    for name, values in random_weights(spec, seed=7).items():
        path = name.removesuffix(".weight")
        weight_format = plan.weight_format(path) if values.ndim == 2 else None
        if weight_format is None:
            tensors[prefix + name] = mx.array(values).astype(mx.bfloat16)
            continue
        parts = mx.quantize(mx.array(values), weight_format.group_size, weight_format.bits, mode=weight_format.mode)
        tensors |= {f"{prefix}{path}.{p}": a for p, a in zip(("weight", "scales", "biases"), parts, strict=False)}
    directory.mkdir(exist_ok=True)
    mx.save_safetensors(str(directory / "model.safetensors"), tensors, metadata={"format": "mlx"})
    write_json(directory / "config.json", tiny_config(hidden_size=128, intermediate_size=192) | config)
    return directory


def means(directory: Path) -> np.ndarray:
    batch = collate([TokenRow(ids, ((0, len(ids)),)) for ids in sample_rows((12, 30), seed=6)], 0)
    return open_session(directory).span_means(batch)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return means(write_mlx(tmp_path_factory.mktemp("mlx") / "bf16", QuantizationPlan()))


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def test_a_missing_mode_means_affine(tmp_path: Path, exact: np.ndarray) -> None:
    plan = QuantizationPlan(WeightFormat(8, 32))
    directory = write_mlx(tmp_path / "m", plan, quantization={"group_size": 32, "bits": 8})
    assert least_cosine(means(directory), exact) > 0.999


def test_mixed_repositories_name_layers_by_objects_and_booleans(tmp_path: Path, exact: np.ndarray) -> None:
    four, eight = WeightFormat(4, 64), WeightFormat(8, 32)
    overrides = {"embed_tokens": eight, "layers.0.mlp.down_proj": None, "layers.1.self_attn.v_proj": eight}
    block = four.as_config() | {
        "model.embed_tokens": {"group_size": 32, "bits": 8},
        "model.layers.0.mlp.down_proj": False,
        "model.layers.1.self_attn.v_proj": {"group_size": 32, "bits": 8, "mode": "affine"},
        "model.layers.1.mlp.up_proj": True,
    }
    directory = write_mlx(tmp_path / "m", QuantizationPlan(four, overrides), quantization=block)
    assert 0.9 < least_cosine(means(directory), exact) < 0.9999


def test_missing_bits_follow_from_the_shapes(tmp_path: Path, exact: np.ndarray) -> None:
    plan = QuantizationPlan(
        WeightFormat(4, 64), {"embed_tokens": WeightFormat(8, 64), "layers.0.mlp.gate_proj": WeightFormat(8, 32)}
    )
    directory = write_mlx(tmp_path / "m", plan, quantization={"group_size": 64, "bits": 4})
    assert 0.9 < least_cosine(means(directory), exact) < 0.9999


def test_the_prefix_is_optional_and_a_head_is_ignored(tmp_path: Path, exact: np.ndarray) -> None:
    directory = write_mlx(tmp_path / "m", QuantizationPlan(), prefix="")
    np.testing.assert_array_equal(means(directory), exact)


def broken(directory: Path, change: Callable[[dict], object]) -> Path:
    path = directory / "model.safetensors"
    tensors = dict(mx.load(str(path)))
    mx.eval(*tensors.values())
    change(tensors)
    mx.save_safetensors(str(path), tensors)
    return directory


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.0.mlp.up_proj.biases"), "layers.0.mlp.up_proj.biases is missing"),
        (lambda t: t.update(x=mx.zeros(3)), "tensor x is not part of this model"),
        (lambda t: t.update({"model.norm.weight": mx.zeros(3)}), r"norm.weight has shape \[3\], config.json implies"),
        (lambda t: t.update({"model.norm.weight": mx.full((128,), np.nan)}), "norm.weight contains NaN"),
        (
            lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:, :5]}),
            "embed_tokens.weight has shape .* not a packing of",
        ),
        (
            lambda t: t.update({"model.embed_tokens.weight": mx.zeros((400, 128))}),
            "embed_tokens.weight is not packed codes",
        ),
    ],
)
def test_a_fault_in_a_repository_is_named(tmp_path: Path, change: Callable[[dict], object], message: str) -> None:
    block = {"group_size": 64, "bits": 4, "mode": "affine"}
    directory = broken(write_mlx(tmp_path / "m", QuantizationPlan(WeightFormat(4, 64)), quantization=block), change)
    with pytest.raises(CheckpointError, match=message):
        open_session(directory)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("q4", "quantization must be an object, found str"),
        ({"bits": 4}, "group_size=None"),
        ({"bits": 4, "group_size": 64, "mode": "gptq"}, "mode='gptq'"),
        ({"bits": "4", "group_size": 64}, "bits='4'"),
    ],
)
def test_an_invalid_quantization_block_is_named(tmp_path: Path, block: object, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        open_session(write_mlx(tmp_path / "m", QuantizationPlan(), quantization=block))


def test_quantized_weights_are_not_quantized_again(tmp_path: Path) -> None:
    block = {"group_size": 64, "bits": 4}
    directory = write_mlx(tmp_path / "m", QuantizationPlan(WeightFormat(4, 64)), quantization=block)
    with pytest.raises(InputError, match="already quantized"):
        open_session(directory, SessionOptions(weights="q8"))


def test_a_damaged_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    directory = write_mlx(
        tmp_path / "m", QuantizationPlan(WeightFormat(4, 64)), quantization={"group_size": 64, "bits": 4}
    )
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match=r"model.safetensors: MLX cannot read it"):
        open_session(directory)


# Streams


def test_a_stream_has_the_same_vectors_on_mlx_and_onnx(make_checkpoint: Callable[..., Path]) -> None:
    directory = make_checkpoint(max_position_embeddings=256)
    text = "\n\n".join(f"Paragraph {i}: the quick brown fox, {'and the dog ' * (i % 5)}" for i in range(30))
    options = pplx_edge.StreamOptions(window=128, margin=16, chunk_tokens=32)
    found, expected = (
        [vector.codes.astype(int) for vector in model.encode_stream(text, options=options)]
        for model in (
            pplx_edge.load(directory, backend="mlx", weights="fp32"),
            pplx_edge.load(directory, backend="onnx", artifact_format="onnx-fp32"),
        )
    )
    assert len(found) == len(expected) > 20
    assert max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True)) <= 1


def test_float_checkpoints_of_every_layout_open(make_checkpoint: Callable[..., Path], tiny_dir: Path) -> None:
    batch = collate([TokenRow(ids, ((0, len(ids)),)) for ids in sample_rows((12,), seed=6)], 0)
    plain = make_checkpoint("plain", dtype="BF16")
    sharded = make_checkpoint("sharded", dtype="BF16", n_shards=3, prefix="model.")
    np.testing.assert_array_equal(open_session(plain).span_means(batch), open_session(sharded).span_means(batch))


def test_a_model_that_config_json_does_not_describe_is_refused(tmp_path: Path, tiny_dir: Path) -> None:
    config = json.loads((tiny_dir / "config.json").read_text())
    write_json(tmp_path / "config.json", config)
    weights = random_weights(ModelSpec.from_config(config))
    save_tensors(tmp_path / "model.safetensors", weights | {"norm.weight": np.full(64, np.inf, np.float32)})
    with pytest.raises(CheckpointError, match=r"norm.weight contains NaN or infinity"):
        open_session(tmp_path)


def test_a_batch_may_have_no_spans(session: MlxSession) -> None:
    ids = np.zeros((1, 4), np.int64)
    batch = TokenBatch(ids, np.ones_like(ids), (Span(0, 2, 2),))
    assert not session.span_means(batch).any()
