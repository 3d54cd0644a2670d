"""The ONNX session: a vector depends only on its own tokens; graphs made by other tools open too."""

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest
import torch
from checkpoints import sample_rows, tiny_config, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from official_graph import export_official_graph, torch_encoder
from onnx import TensorProto
from onnxruntime.quantization import QuantType, quantize_dynamic

import pplx_edge
from pplx_convert import convert
from pplx_convert.onnx.builder import GraphBuilder
from pplx_convert.onnx.graph import EncoderGraph, tensor
from pplx_edge.backends.onnx_session import PackedSession, PaddedSession, open_session
from pplx_edge.errors import ModelError, ModelNotFound
from pplx_edge.text.batching import collate, plan_batches
from pplx_edge.types import BatchPolicy, SessionOptions, TokenBatch, TokenRow
from pplx_edge.vectors.codes import CODE_BOUNDS, int8_codes
from pplx_edge.vectors.similarity import cosine_similarity

LENGTHS = (33, 1, 64, 64, 7, 128, 90, 64, 2, 16)


@pytest.fixture(scope="module")
def int8_dir(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tiny_dir, tmp_path_factory.mktemp("int8") / "out", "onnx-int8").directory


@pytest.fixture(scope="module")
def session(int8_dir: Path) -> PackedSession:
    opened = open_session(int8_dir, SessionOptions(threads=2))
    assert isinstance(opened, PackedSession)
    return opened


@pytest.fixture(scope="module")
def rows() -> list[TokenRow]:
    return [TokenRow(ids, ((0, len(ids)),)) for ids in sample_rows(LENGTHS, seed=3)]


@pytest.fixture(scope="module")
def alone(session: PackedSession, rows: list[TokenRow]) -> np.ndarray:
    """The mean of each row, encoded alone."""
    return np.concatenate([session.span_means(collate([row], 0)) for row in rows])


@settings(max_examples=25)
@given(order=st.permutations(range(len(LENGTHS))), max_tokens=st.sampled_from([1, 70, 200, 10_000]))
def test_a_vector_does_not_depend_on_its_batch(
    session: PackedSession, rows: list[TokenRow], alone: np.ndarray, order: list[int], max_tokens: int
) -> None:
    for picked in plan_batches([len(rows[i]) for i in order], BatchPolicy(max_tokens=max_tokens)):
        chosen = [order[i] for i in picked]
        means = session.span_means(collate([rows[i] for i in chosen], 0))
        np.testing.assert_array_equal(means, alone[chosen])


@pytest.mark.without_vnni
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_vector_does_not_depend_on_the_number_of_threads(
    int8_dir: Path, rows: list[TokenRow], alone: np.ndarray, threads: int
) -> None:
    means = open_session(int8_dir, SessionOptions(threads=threads)).span_means(collate(rows, 0))
    np.testing.assert_array_equal(means, alone)


def test_nano_codes_are_identical_alone_in_batches_shuffled_and_at_any_thread_count(nano_dir: Path) -> None:
    texts = [f"{'word ' * (i % 23)}number {i}" for i in range(60)] + ["", "a", "ключ к двери " * 40]
    shuffled = list(np.random.default_rng(0).permutation(len(texts)))
    one, two = pplx_edge.load(nano_dir, threads=1), pplx_edge.load(nano_dir, threads=2)
    expected = np.concatenate([one.encode([text]) for text in texts])
    np.testing.assert_array_equal(two.encode(texts), expected)
    np.testing.assert_array_equal(two.encode([texts[i] for i in shuffled]), expected[shuffled])


def test_padding_side_and_amount_do_not_matter(session: PackedSession, rows: list[TokenRow], alone: np.ndarray) -> None:
    batch = collate(rows, 0)
    shift = [batch.input_ids.shape[1] - length for length in batch.lengths]
    left = TokenBatch(
        np.stack([np.roll(ids, by) for ids, by in zip(batch.input_ids, shift, strict=True)]),
        np.stack([np.roll(mask, by) for mask, by in zip(batch.attention_mask, shift, strict=True)]),
        batch.spans,
    )
    np.testing.assert_array_equal(session.span_means(left), alone)
    wide = TokenBatch(
        np.pad(batch.input_ids, ((0, 0), (0, 9))), np.pad(batch.attention_mask, ((0, 0), (0, 9))), batch.spans
    )
    np.testing.assert_array_equal(session.span_means(wide), alone)


@pytest.mark.without_vnni
def test_official_outputs_of_our_graph_agree_with_its_states(
    int8_dir: Path, rows: list[TokenRow], alone: np.ndarray
) -> None:
    runtime = ort.InferenceSession(str(int8_dir / "model.onnx"))
    batch = collate(rows, 0)
    feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    names = ["last_hidden_state", "pooler_output", "pooler_output_int8", "pooler_output_binary"]
    states, means, codes, signs = runtime.run(names, feeds)
    assert states.shape == (*batch.input_ids.shape, alone.shape[1])
    assert (states[batch.attention_mask == 0] == 0).all()
    np.testing.assert_array_equal(means, alone)
    np.testing.assert_array_equal(codes, int8_codes(alone))
    np.testing.assert_array_equal(signs, np.where(means >= 0, 1, -1))


@pytest.mark.without_vnni
def test_nano_gives_the_same_codes_in_a_session_with_default_options(nano_dir: Path, tmp_path: Path) -> None:
    artifact = convert(nano_dir, tmp_path / "nano", "onnx-int8").directory
    embedder = pplx_edge.load(artifact)
    texts = [f"{'word ' * (i % 23)}number {i}" for i in range(60)] + ["a", "ключ к двери " * 40]
    batch = collate(list(embedder.tokenizer.text_rows(texts)), 0)
    feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    runtime = ort.InferenceSession(str(artifact / "model.onnx"))
    (codes,) = runtime.run(["pooler_output_int8"], feeds)
    np.testing.assert_array_equal(codes, embedder.encode(texts))


def test_codes_of_the_graph_are_exact_at_every_bound() -> None:
    """Run only the end of the graph on means at each bound, next to each bound, zeros, and means that saturate."""
    near = np.concatenate(
        [np.nextafter(CODE_BOUNDS, -9), CODE_BOUNDS, np.nextafter(CODE_BOUNDS, 9), [0, -0.0, 20, -20]]
    )
    means = near.astype(np.float32)[None]
    builder = GraphBuilder()
    EncoderGraph(SimpleNamespace(), None, builder).quantized("means")  # type: ignore[arg-type]
    outputs = [tensor("pooler_output_int8", TensorProto.INT8, (1, means.shape[1]))]
    model = builder.model([tensor("means", TensorProto.FLOAT, means.shape)], outputs, "tail")
    runtime = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(runtime.run(None, {"means": means})[0], int8_codes(means))


def test_an_empty_row_among_others_has_a_zero_mean(int8_dir: Path) -> None:
    runtime = ort.InferenceSession(str(int8_dir / "model.onnx"))
    ids, mask = np.ones((2, 4), np.int64), np.array([[0, 0, 0, 0], [1, 1, 1, 0]], np.int64)
    means, states = runtime.run(["pooler_output", "last_hidden_state"], {"input_ids": ids, "attention_mask": mask})
    assert (means[0] == 0).all()
    assert np.isfinite(states).all()
    assert means[1].any()


def test_many_threads_share_one_session(session: PackedSession, rows: list[TokenRow], alone: np.ndarray) -> None:
    results: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        results[i] = session.span_means(collate([rows[i]], 0))[0]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(rows))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    np.testing.assert_array_equal(np.stack([results[i] for i in range(len(rows))]), alone)


@pytest.fixture(scope="module")
def official_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with weights and the official graph, traced by torch's exporter."""
    directory = write_checkpoint(tmp_path_factory.mktemp("official"), tiny_config())
    export_official_graph(directory, directory / "onnx" / "model.onnx")
    (directory / "model.safetensors").rename(directory / "weights.away")
    return directory


def reference_means(directory: Path, rows: list[TokenRow], tmp_path: Path) -> np.ndarray:
    source = write_checkpoint(tmp_path / "source", tiny_config())
    encoder = torch_encoder(source)
    with torch.no_grad():
        return np.stack([encoder(torch.tensor(row.ids)[None])[0].mean(dim=0).numpy() for row in rows])


def test_the_official_graph_gives_the_reference(official_dir: Path, rows: list[TokenRow], tmp_path: Path) -> None:
    opened = open_session(official_dir)
    assert isinstance(opened, PaddedSession)
    assert opened.gives_row_means
    expected = reference_means(official_dir, rows, tmp_path)
    np.testing.assert_allclose(opened.span_means(collate(rows, 0)), expected, atol=2e-5)


def test_spans_within_rows_of_the_official_graph(official_dir: Path, rows: list[TokenRow], tmp_path: Path) -> None:
    cut = [TokenRow(row.ids, ((0, len(row) // 2), (len(row) // 2, len(row)))) for row in rows]
    means = open_session(official_dir).span_means(collate(cut, 0))
    weights = np.array([[stop - start] for row in cut for start, stop in row.bounds], np.float32)
    whole = (means * weights).reshape(len(rows), 2, -1).sum(axis=1) / np.array([[len(row)] for row in rows])
    np.testing.assert_allclose(whole, reference_means(official_dir, rows, tmp_path), atol=2e-5)


def test_load_opens_a_repository_that_has_only_the_official_graph(official_dir: Path) -> None:
    codes = pplx_edge.load(official_dir).encode(["what is machine learning?", "", "the quick brown fox"])
    assert codes.dtype == np.int8
    assert not codes[1].any()
    assert codes[0].any()


@pytest.mark.without_vnni
def test_a_community_int8_graph_without_pooling(tmp_path: Path, rows: list[TokenRow]) -> None:
    directory = write_checkpoint(tmp_path / "community", tiny_config())
    expected = reference_means(directory, rows, tmp_path)
    plain = export_official_graph(directory, tmp_path / "plain.onnx", states_only=True)
    quantize_dynamic(plain, directory / "model_int8.onnx", weight_type=QuantType.QInt8)
    opened = open_session(directory)
    assert isinstance(opened, PaddedSession)
    assert not opened.gives_row_means
    means = opened.span_means(collate(rows, 0))
    assert np.diag(cosine_similarity(means, expected)).min() > 0.9


def test_the_error_for_a_missing_graph_names_the_command(tiny_dir: Path) -> None:
    with pytest.raises(ModelNotFound, match="pplx-edge convert"):
        open_session(tiny_dir)


def test_a_corrupt_graph_is_one_error(tiny_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_dir / "config.json").read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match="cannot open"):
        open_session(tmp_path)
