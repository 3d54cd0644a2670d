"""The formats of other runtimes: onnx-int4, openvino-* and gguf-*, each compared with the NumPy reference.

openvino, gguf and llama-cpp-python are optional; without them their tests are skipped.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import sample_rows, tiny_config, write_checkpoint

import pplx_edge
from pplx_bench.rough.plants import write_rough
from pplx_convert import convert
from pplx_edge.errors import InputError, MissingExtra, ModelError
from pplx_edge.models.qwen3_numpy import encode_rows
from pplx_edge.text.batching import collate
from pplx_edge.types import Session, TokenBatch, TokenRow
from pplx_edge.vectors.similarity import paired_cosines
from pplx_edge.weights.artifact import Artifact
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_edge.weights.rounding import quantize_blocks

LENGTHS = (33, 1, 64, 7, 90)
LEAST_COSINE = {
    "onnx-int4": 0.9,
    "openvino-int8": 0.997,
    "openvino-fp16": 0.99999,
    "gguf-q8_0": 0.997,
    "gguf-f16": 0.9999,
    "gguf-q4_0": 0.9,
    "gguf-q4_k": 0.9,
}


@pytest.fixture(scope="module")
def rows() -> list[TokenRow]:
    return [TokenRow(ids, ((0, len(ids)),)) for ids in sample_rows(LENGTHS, seed=3)]


@pytest.fixture(scope="module")
def expected(tiny_dir: Path, rows: list[TokenRow]) -> list[np.ndarray]:
    """The reference states of each row."""
    return encode_rows(Checkpoint.open(tiny_dir), [row.ids for row in rows])


def require(artifact_format: str) -> None:
    """Skip a test whose format needs a package that is not installed."""
    for name in {"openvino": ["openvino"], "gguf": ["gguf", "llama_cpp"]}.get(artifact_format.partition("-")[0], []):
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def converted(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    """Convert the tiny checkpoint to a format once."""
    base, made = tmp_path_factory.mktemp("formats"), {}

    def make(artifact_format: str) -> Artifact:
        require(artifact_format)
        if artifact_format not in made:
            made[artifact_format] = convert(tiny_dir, base / artifact_format, artifact_format)
        return made[artifact_format]

    return make


@pytest.mark.parametrize("artifact_format", LEAST_COSINE)
def test_states_and_spans_follow_the_reference(artifact_format: str, converted, rows, expected) -> None:
    session: Session = pplx_edge.load(converted(artifact_format).directory).session
    batch = collate(rows, 0)
    states = session.token_states(batch)
    for row, reference in enumerate(expected):
        assert paired_cosines(states[row, : len(reference)], reference).min() > LEAST_COSINE[artifact_format] - 0.05
    means = session.span_means(batch)
    assert paired_cosines(means, np.stack([x.mean(axis=0) for x in expected])).min() > LEAST_COSINE[artifact_format]
    halves = [TokenRow(row.ids, ((0, len(row) // 2), (len(row) // 2, len(row)))) for row in rows if len(row) > 1]
    parts = session.span_means(collate(halves, 0))
    weights = np.array([stop - start for row in halves for start, stop in row.bounds], np.float32)[:, None]
    whole = (parts * weights).reshape(len(halves), 2, -1).sum(axis=1) / weights.reshape(-1, 2, 1).sum(axis=1)
    picked = [i for i, row in enumerate(rows) if len(row) > 1]
    assert paired_cosines(whole, means[picked]).min() > 0.999


@pytest.mark.parametrize("artifact_format", ["openvino-fp16", "gguf-f16"])
def test_padding_side_does_not_matter(artifact_format: str, converted, rows) -> None:
    session: Session = pplx_edge.load(converted(artifact_format).directory).session
    batch = collate(rows, 0)
    shift = [batch.input_ids.shape[1] - length for length in batch.lengths]
    left = TokenBatch(
        np.stack([np.roll(ids, by) for ids, by in zip(batch.input_ids, shift, strict=True)]),
        np.stack([np.roll(mask, by) for mask, by in zip(batch.attention_mask, shift, strict=True)]),
        batch.spans,
    )
    np.testing.assert_allclose(session.span_means(left), session.span_means(batch), atol=1e-4)


def test_blocks_of_four_bits_are_the_nearest_of_their_grid() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((24, 96), dtype=np.float32)
    weight[:8] = np.abs(weight[:8]) + 1  # groups of one sign
    weight[8:12] = -np.abs(weight[8:12]) - 1
    weight[12] = 0
    codes, scales, zeros = quantize_blocks(weight, 32)
    assert codes.max() <= 15
    assert zeros.max() <= 15
    for r in range(24):
        for g in range(3):
            group, grid = weight[r, 32 * g : 32 * g + 32], scales[r, g] * (np.arange(16.0) - zeros[r, g])
            chosen = grid[codes[r, 32 * g : 32 * g + 32]]
            nearest = np.abs(grid[:, None] - group).min(axis=0)
            np.testing.assert_allclose(np.abs(chosen - group), nearest, atol=1e-6)
            span = max(group.max(), 0) - min(group.min(), 0)
            assert np.abs(chosen - group).max() <= span / 15 + 1e-6


def test_a_width_that_groups_do_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises((InputError, ValueError), match="do not divide into groups of 32"):
        convert(write_checkpoint(tmp_path / "odd", tiny_config(intermediate_size=72)), tmp_path / "out", "onnx-int4")


def test_a_causal_openvino_model_is_refused(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    from openvino import opset13 as op

    rng = np.random.default_rng(0)
    for causal in (False, True):
        directory = write_checkpoint(tmp_path / f"causal-{causal}", tiny_config())
        (directory / "model.safetensors").unlink()
        ids, mask = (op.parameter([-1, -1], ov.Type.i64, name=name) for name in ("input_ids", "attention_mask"))
        for value, name in ((ids, "input_ids"), (mask, "attention_mask")):
            value.output(0).get_tensor().set_names({name})
        table = op.constant(rng.standard_normal((400, 64)).astype(np.float32))
        x = op.unsqueeze(op.gather(table, ids, op.constant(np.int64(0))), op.constant(np.int64(1)))
        keys = op.unsqueeze(op.convert(mask, "boolean"), op.constant(np.array([1, 2], np.int64)))
        if causal:
            mixed = op.scaled_dot_product_attention(x, x, x, causal=True)
        else:
            mixed = op.scaled_dot_product_attention(x, x, x, keys)
        result = op.result(op.squeeze(mixed, op.constant(np.int64(1))))
        result.output(0).get_tensor().set_names({"last_hidden_state"})
        ov.save_model(ov.Model([result], [ids, mask], "foreign"), directory / "openvino_model.xml")
        if causal:
            with pytest.raises(ModelError, match="refused, because its attention is causal"):
                pplx_edge.load(directory)
        else:
            assert pplx_edge.load(directory).encode(["a text"]).any()


def test_a_gguf_file_says_bidirectional_and_mean_and_holds_the_tokenizer(tiny_dir: Path, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    artifact = convert(tiny_dir, tmp_path / "out", "gguf-q8_0")
    assert artifact.weights["tokenizer"] == "text, without Unicode normalization"
    reader = gguf.GGUFReader(artifact.path("model.gguf"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "qwen3"
    assert fields["qwen3.attention.causal"] is False
    assert fields["qwen3.pooling_type"] == gguf.PoolingType.MEAN
    assert fields["tokenizer.ggml.pre"] == "qwen2"
    assert len(fields["tokenizer.ggml.tokens"]) == 400
    assert fields["tokenizer.ggml.add_bos_token"] is False
    checkpoint = Checkpoint.open(tiny_dir)
    assert {tensor.name for tensor in reader.tensors} >= {"token_embd.weight", "blk.1.ffn_down.weight"}
    stored = {tensor.name: tensor for tensor in reader.tensors}["token_embd.weight"]
    table = gguf.quants.dequantize(stored.data, stored.tensor_type)
    np.testing.assert_allclose(table, checkpoint.read("embed_tokens.weight"), atol=0.02)


def test_a_tokenizer_that_llama_cpp_does_not_have_leaves_ids_only(nano_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    with pytest.warns(UserWarning, match="nano: llama.cpp has no tokenizer that gives this model's ids"):
        artifact = convert(nano_dir, tmp_path / "out", "gguf-q8_0")
    assert artifact.weights["tokenizer"] == "ids only"
    assert artifact.parity["min_cosine"] > 0.99


def test_a_format_that_llama_cpp_rounds_needs_llama_cpp(
    tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_cpp", None)
    with pytest.raises(MissingExtra, match=r"gguf-q4_k is rounded by llama\.cpp and needs llama-cpp-python"):
        convert(tiny_dir, tmp_path / "out", "gguf-q4_k")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("artifact_format", ["openvino-fp16", "openvino-int8", "gguf-f16", "gguf-q8_0", "gguf-q4_0"])
def test_outliers_and_a_large_stream_cost_nothing(artifact_format: str, tiny_dir: Path, tmp_path: Path) -> None:
    require(artifact_format)
    rough = write_rough(tiny_dir, tmp_path / "rough")
    smooth, found = (
        convert(source, tmp_path / f"{source.name}-out", artifact_format).parity for source in (tiny_dir, rough)
    )
    assert 1 - found["mean_cosine"] <= 1.5 * (1 - smooth["mean_cosine"]) + 1e-6


def test_llama_cpp_pools_and_tokenizes_as_we_do(converted, tiny_dir: Path) -> None:
    """What Ollama and LM Studio do: text in, mean pooling inside llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp")
    artifact = converted("gguf-f16")
    model = llama_cpp.Llama(
        str(artifact.path("model.gguf")), embedding=True, verbose=False, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_MEAN
    )
    ours = pplx_edge.load(artifact.directory)
    for text in ("what is machine learning?", "Der schnelle braune Fuchs 123", "機械学習とは何ですか。"):
        assert model.tokenize(text.encode(), add_bos=False) == ours.tokenizer.text_rows([text])[0].ids.tolist()
        theirs = np.array(model.embed(text, normalize=False), np.float32)[None]
        assert paired_cosines(theirs, ours.encode([text], "float32"))[0] > 0.9999
    assert "llama_cpp" in sys.modules
