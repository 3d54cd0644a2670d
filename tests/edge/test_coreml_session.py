"""The Core ML session with predictions of the NumPy evaluator, so that everything but Core ML runs on any machine."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import random_weights, sample_rows, save_tensors, write_checkpoint

pytest.importorskip("coremltools")

from coreml_models import OraclePredict, converted, oracle_session

import pplx_edge
from pplx_edge import backends, layout
from pplx_edge.backends import coreml_io as io
from pplx_edge.backends import coreml_runtime
from pplx_edge.backends.coreml_probe import Choice
from pplx_edge.backends.coreml_session import CoreMLSession, open_session
from pplx_edge.backends.coreml_table import EmbeddingTable
from pplx_edge.errors import ArtifactError, InputError, ModelError, ModelNotFound, TextTooLong
from pplx_edge.models.qwen3_numpy import encode_rows
from pplx_edge.registry import COREML
from pplx_edge.spec import ModelSpec
from pplx_edge.text.batching import collate
from pplx_edge.types import SessionOptions, Span, TokenBatch, TokenRow
from pplx_edge.vectors.codes import int8_codes
from pplx_edge.weights.artifact import Artifact
from pplx_edge.weights.checkpoint import Checkpoint

# Weights of the source are float16 values, so what is left are the rotations, rounded to float16.
TOLERANCE = 4e-3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose weights are exact in float16; read only."""
    directory = write_checkpoint(tmp_path_factory.mktemp("source") / "checkpoint")
    save_tensors(directory / "model.safetensors", random_weights(ModelSpec.from_directory(directory)), "F16")
    return directory


@pytest.fixture(scope="module")
def artifact(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same checkpoint, converted with functions of 8 and 16 tokens; read only."""
    return converted(source, tmp_path_factory.mktemp("coreml") / "fp16")


def span_reference(source: Path, rows: Sequence[TokenRow]) -> np.ndarray:
    """Return the span means of the NumPy model, zeros for empty spans."""
    states = encode_rows(Checkpoint.open(source), [row.ids for row in rows])
    dim = states[0].shape[1]
    return np.stack(
        [
            state[start:stop].mean(axis=0) if stop > start else np.zeros(dim, np.float32)
            for row, state in zip(rows, states, strict=True)
            for start, stop in row.bounds
        ]
    )


def rows_with(*described: tuple[int, tuple[tuple[int, int], ...]]) -> list[TokenRow]:
    ids = sample_rows([length for length, _ in described], seed=3)
    return [TokenRow(row, bounds) for row, (_, bounds) in zip(ids, described, strict=True)]


# Span means and states


def test_span_means_equal_the_reference(source: Path, artifact: Artifact) -> None:
    rows = rows_with(
        (16, ((0, 16),)),
        (9, ((0, 4), (4, 4), (5, 9), (0, 9))),
        (1, ((0, 1),)),
        (8, ((7, 8), (0, 3))),
        (5, ((2, 2),)),
    )
    session, predict = oracle_session(artifact.directory)
    means = session.span_means(collate(rows, session.spec.sep_id))
    np.testing.assert_allclose(means, span_reference(source, rows), atol=TOLERANCE)
    assert means.dtype == np.float32
    np.testing.assert_array_equal(means[[2, 8]], 0)  # empty spans
    assert predict.lengths == [16, 16, 8, 8]  # the shortest function that fits; none for a row of empty spans


def test_float16_rounding_moves_codes_by_a_step_at_most(source: Path, artifact: Artifact) -> None:
    rows = rows_with((16, ((0, 16),)), (7, ((0, 7),)))
    session, _ = oracle_session(artifact.directory, half=True)
    found = int8_codes(session.span_means(collate(rows, 0))).astype(int)
    assert np.abs(found - int8_codes(span_reference(source, rows))).max() <= 1


def test_span_means_are_in_the_order_of_the_spans(source: Path, artifact: Artifact) -> None:
    rows = rows_with((6, ()), (12, ()))
    batch = collate(rows, 0)
    spans = (Span(1, 3, 9), Span(0, 0, 2), Span(1, 0, 12), Span(0, 2, 6), Span(1, 5, 5))
    session, predict = oracle_session(artifact.directory)
    means = session.span_means(TokenBatch(batch.input_ids, batch.attention_mask, spans))
    states = encode_rows(Checkpoint.open(source), [row.ids for row in rows])
    expected = [states[s.row][s.start : s.stop].mean(axis=0) for s in spans[:4]]
    np.testing.assert_allclose(means[:4], expected, atol=TOLERANCE)
    assert sorted(predict.lengths) == [8, 16]  # each row once


def test_more_spans_than_a_program_pools_are_pooled_on_the_host_in_one_pass(source: Path, artifact: Artifact) -> None:
    bounds = tuple((i, j) for i in range(6) for j in range(i + 1, 7))
    assert len(bounds) > io.MAX_SPANS
    rows = rows_with((7, bounds))
    session, predict = oracle_session(artifact.directory)
    means = session.span_means(collate(rows, 0))
    np.testing.assert_allclose(means, span_reference(source, rows), atol=TOLERANCE)
    assert predict.lengths == [8]


def test_both_ways_of_pooling_agree(artifact: Artifact) -> None:
    few = rows_with((16, ((0, 5), (5, 16))))
    many = [TokenRow(few[0].ids, (*few[0].bounds, *((0, 1),) * io.MAX_SPANS))]
    session, _ = oracle_session(artifact.directory)
    inside, outside = (session.span_means(collate(rows, 0))[:2] for rows in (few, many))
    np.testing.assert_allclose(inside, outside, atol=1e-6)


def test_padding_changes_nothing(artifact: Artifact) -> None:
    (row,) = rows_with((5, ((0, 5), (1, 3))))
    spans = tuple(Span(0, start, stop) for start, stop in row.bounds)
    session, _ = oracle_session(artifact.directory)
    alone = session.span_means(collate([row], 0))
    for pad_left, pad_right in ((0, 3), (4, 0), (2, 9)):
        ids = np.pad(row.ids, (pad_left, pad_right), constant_values=session.spec.sep_id)[None]
        mask = np.pad(np.ones(5, np.int64), (pad_left, pad_right))[None]
        np.testing.assert_array_equal(session.span_means(TokenBatch(ids, mask, spans)), alone)


def test_token_states_are_zeros_at_padding(source: Path, artifact: Artifact) -> None:
    rows = rows_with((10, ()), (3, ()))
    session, _ = oracle_session(artifact.directory)
    states = session.token_states(collate(rows, 0))
    assert states.shape == (2, 10, 64)
    for found, expected in zip(states, encode_rows(Checkpoint.open(source), [row.ids for row in rows]), strict=True):
        np.testing.assert_allclose(found[: len(expected)], expected, atol=TOLERANCE)
        np.testing.assert_array_equal(found[len(expected) :], 0)


def test_a_row_without_tokens_is_not_run(artifact: Artifact) -> None:
    session, predict = oracle_session(artifact.directory)
    batch = TokenBatch(np.zeros((1, 4), np.int64), np.zeros((1, 4), np.int64), (Span(0, 0, 0),))
    np.testing.assert_array_equal(session.span_means(batch), np.zeros((1, 64)))
    np.testing.assert_array_equal(session.token_states(batch), np.zeros((1, 4, 64)))
    assert predict.lengths == []


@pytest.mark.parametrize("format", ["coreml-int8", "coreml-pal4"])
def test_int8_tables_are_close_to_the_reference(source: Path, tmp_path: Path, format: str) -> None:
    small = converted(source, tmp_path / "out", format, (8,))
    rows = rows_with((8, ((0, 8),)))
    session, _ = oracle_session(small.directory)
    means, expected = session.span_means(collate(rows, 0)), span_reference(source, rows)
    assert np.linalg.norm(means - expected) < (0.1 if format == "coreml-int8" else 0.5) * np.linalg.norm(expected)


# Limits


def test_the_longest_function_is_the_limit(artifact: Artifact) -> None:
    session, _ = oracle_session(artifact.directory)
    assert session.spec.max_tokens == 16
    rows = rows_with((4, ((0, 4),)), (17, ((0, 17),)))
    with pytest.raises(TextTooLong, match=r"row 1 has 17 tokens.*16") as raised:
        session.span_means(collate(rows, 0))
    assert (raised.value.index, raised.value.n_tokens, raised.value.limit) == (1, 17, 16)


def test_function_lengths_end_with_the_limit_of_the_model() -> None:
    assert io.model_lengths(32768, 2048) == io.LENGTHS
    assert io.model_lengths(32768) == (32, 64, 128, 256, 512)
    assert io.model_lengths(32768, 700) == (32, 64, 128, 256, 512, 700)
    assert io.model_lengths(512) == (32, 64, 128, 256, 512)
    assert io.model_lengths(300) == (32, 64, 128, 256, 300)
    assert io.model_lengths(8) == (8,)


def test_span_weights_sum_to_one_and_are_zero_at_padding() -> None:
    inputs = io.row_inputs(np.ones((5, 4), np.float32), 8, [(0, 3), (2, 2)])
    np.testing.assert_allclose(inputs[io.SPAN_WEIGHTS][0, 0], [1 / 3] * 3 + [0] * 5, rtol=1e-6)
    np.testing.assert_array_equal(inputs[io.SPAN_WEIGHTS][0, 1:], 0)
    np.testing.assert_array_equal(inputs[io.KEY_BIAS][0, 0, 0], [0] * 5 + [-30000] * 3)
    np.testing.assert_array_equal(inputs[io.INPUT_EMBEDS][0, 5:], 0)


# Opening


def test_the_error_on_machines_without_core_ml_names_alternatives(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    for release, here in (("", "Linux"), ("14.6", "macOS 14.6")):
        monkeypatch.setattr("platform.mac_ver", lambda release=release: (release, ("", "", ""), ""))
        monkeypatch.setattr("platform.system", lambda: "Linux")
        with pytest.raises(InputError, match=rf"macOS 15 or later, this is {here}; .*pplx-edge info .* --evaluate"):
            open_session(artifact.directory)


def test_other_directories_are_refused(source: Path, artifact: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="--to coreml-fp16"):
        open_session(source)
    onnx = tmp_path / "onnx"
    onnx.mkdir()
    manifest = json.loads((artifact.directory / "pplx-edge.json").read_text())
    (onnx / "pplx-edge.json").write_text(json.dumps(manifest | {"format": "onnx-int8", "files": {}}))
    with pytest.raises(ArtifactError, match="onnx-int8"):
        backends.open_session(COREML, onnx)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SessionOptions(compute_units="tpu"), "'tpu'.*cpu\\+ane, cpu, all"),
        (SessionOptions(threads=2), "threads.*compute_units"),
    ],
)
def test_unknown_options_are_refused(artifact: Artifact, options: SessionOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        backends.open_session(COREML, artifact.directory, options)


def test_a_table_of_another_shape_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    path = artifact.path(layout.COREML_TABLE)
    with pytest.raises(ArtifactError, match=r"\[400, 64\].*\[400, 128\]"):
        EmbeddingTable.open(path, (400, 128))
    (tmp_path / "bad.safetensors").write_bytes(path.read_bytes()[:50])
    with pytest.raises(ArtifactError, match="not a readable"):
        EmbeddingTable.open(tmp_path / "bad.safetensors", (400, 64))


def test_ids_outside_the_table_are_refused(artifact: Artifact) -> None:
    table = EmbeddingTable.open(artifact.path(layout.COREML_TABLE), (400, 64))
    for wrong in (400, -1):
        with pytest.raises(InputError, match=f"token id {wrong} "):
            table.rows(np.array([3, wrong]))


# Core ML, played by the evaluator


class FakeCoreML:
    """Stands in for the parts of coremltools that need a Mac; `calls` records compilations and loaded functions."""

    def __init__(self, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, cache: Path):
        self.calls: list[tuple[str, ...]] = []
        fake = self

        class Compiled:
            def __init__(self, path: str, compute_units: Any, function_name: str):
                fake.calls.append(("load", function_name, compute_units.name))
                self.name = function_name
                self.program = OraclePredict(artifact).program

            def predict(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
                return self.program.run(self.name, inputs)

        def compile_model(model: str, destination: str) -> str:
            fake.calls.append(("compile", Path(model).name))
            Path(destination).mkdir()
            return destination

        monkeypatch.setenv("PPLX_EDGE_CACHE", str(cache))
        monkeypatch.setattr("platform.mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
        monkeypatch.setattr("coremltools.models.CompiledMLModel", Compiled)
        monkeypatch.setattr(
            coreml_runtime, "choose", lambda _compiled, _model, _length, units, _: Choice(units, io.FUSED)
        )
        monkeypatch.setattr("coremltools.models.utils.compile_model", compile_model)


def test_opening_compiles_once_and_loads_functions_when_needed(
    source: Path, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core_ml = FakeCoreML(artifact, monkeypatch, tmp_path)
    rows = rows_with((5, ((0, 5),)), (16, ((0, 16),)), (7, ((0, 7),)))
    session = backends.open_session(COREML, artifact.directory, SessionOptions(compute_units="cpu+ane"))
    means = session.span_means(collate(rows, 0))
    np.testing.assert_allclose(means, span_reference(source, rows), atol=TOLERANCE)
    open_session(artifact.directory)
    assert core_ml.calls == [
        ("compile", "model.mlpackage"),
        ("load", "tokens_8", "CPU_AND_NE"),
        ("load", "tokens_16", "CPU_AND_NE"),
    ]


def test_an_embedder_gives_the_vectors_of_the_reference(
    source: Path, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCoreML(artifact, monkeypatch, tmp_path)
    model = pplx_edge.load(artifact.directory, backend="coreml")
    codes = model.encode(["a fox", "the dog", ""])
    rows = model.tokenizer.text_rows(["a fox", "the dog"])
    expected = int8_codes(span_reference(source, rows))
    assert np.abs(codes[:2].astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(codes[2], 0)


def test_a_text_above_the_limit_is_told_how_to_get_more(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeCoreML(artifact, monkeypatch, tmp_path)
    model = pplx_edge.load(artifact.directory, backend="coreml")
    with pytest.raises(TextTooLong, match=r"limit 16; .*--max-tokens.*2,048.*mlx backend"):
        model.encode(["fox " * 100])


def test_failures_of_core_ml_are_translated(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such device")

    FakeCoreML(artifact, monkeypatch, tmp_path / "a")
    monkeypatch.setattr("coremltools.models.CompiledMLModel", fail)
    with pytest.raises(ModelError, match=r"at 8 tokens.*no such device"):
        open_session(artifact.directory).span_means(collate(rows_with((5, ((0, 5),))), 0))
    monkeypatch.setenv("PPLX_EDGE_CACHE", str(tmp_path / "b"))
    monkeypatch.setattr("coremltools.models.utils.compile_model", fail)
    with pytest.raises(ModelError, match=r"cannot compile.*no such device"):
        open_session(artifact.directory)
    assert list((tmp_path / "b" / "coreml").iterdir()) == []


def test_the_device_is_read_from_the_plan(artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCoreML(artifact, monkeypatch, tmp_path)
    engine, processor = type("MLNeuralEngineComputeDevice", (), {})(), type("MLCPUComputeDevice", (), {})()
    costs = {"linear": (engine, 0.6), "silu": (engine, 0.15), "cast": (processor, 0.25), "const": (None, 0.0)}
    function = SimpleNamespace(block=SimpleNamespace(operations=list(costs)))
    plan = SimpleNamespace(
        model_structure=SimpleNamespace(program=SimpleNamespace(functions={"tokens_16": function})),
        get_compute_device_usage_for_mlprogram_operation=lambda operation: (
            SimpleNamespace(preferred_compute_device=costs[operation][0]) if costs[operation][0] else None
        ),
        get_estimated_cost_for_mlprogram_operation=lambda operation: SimpleNamespace(weight=costs[operation][1]),
    )
    monkeypatch.setattr("coremltools.models.compute_plan.MLComputePlan.load_from_path", lambda *_, **__: plan)
    assert open_session(artifact.directory).device == "coreml (ane 75%, cpu 25%)"


# Core ML itself


@pytest.fixture
def core_ml() -> None:
    """Skip a test on a Mac that is too old for the packages."""
    try:
        coreml_runtime.require_macos()
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.apple
@pytest.mark.filterwarnings("ignore:Core ML on:UserWarning")  # where the CPU takes over, it must be right as well
@pytest.mark.parametrize("units", ["cpu", "all", "cpu+ane"])
def test_core_ml_agrees_with_the_reference(core_ml: None, source: Path, artifact: Artifact, units: str) -> None:
    rows = rows_with((16, ((0, 16), (3, 9))), (5, ((0, 5),)), (9, ((0, 9),)))
    session: CoreMLSession = open_session(artifact.directory, SessionOptions(compute_units=units))
    means, expected = session.span_means(collate(rows, 0)), span_reference(source, rows)
    assert np.linalg.norm(means - expected) < 0.02 * np.linalg.norm(expected)
    assert session.device.startswith("coreml (")


@pytest.mark.apple
def test_this_mac_is_recognized(core_ml: None) -> None:
    coreml_runtime.require_macos()
    release, build = coreml_runtime.system_build().split("-")
    assert int(release.split(".")[0]) >= 15
    assert build
