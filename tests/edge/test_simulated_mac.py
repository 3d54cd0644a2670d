"""Core ML as it fails on real Macs, played on any machine: kept inputs, dying and hanging children, and NaN."""

import gc
import json
import os
import sys
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from checkpoints import write_checkpoint

pytest.importorskip("coremltools")

from coreml_models import SHORT, OraclePredict, converted, oracle_session

from pplx_edge.backends import coreml_io as io
from pplx_edge.backends import coreml_probe, coreml_runtime
from pplx_edge.backends.coreml_probe import Choice, Reference
from pplx_edge.backends.coreml_session import open_session
from pplx_edge.errors import ArtifactError, InputError, ModelError
from pplx_edge.text.batching import collate
from pplx_edge.types import TokenRow
from pplx_edge.weights.artifact import Artifact

BUILD = "26.1-25B78"
LEAST_COSINE = 0.99


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny model with functions of 8 and 16 tokens; read only."""
    folder = tmp_path_factory.mktemp("simulated")
    return converted(write_checkpoint(folder / "checkpoint"), folder / "fp16")


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Replaces the child process by a program that has its arguments and a function `answer`."""

    def give(body: str) -> None:
        program = tmp_path / "child.py"
        program.write_text(
            f"import os, sys, time\n_, compiled, model, length, units, form = sys.argv\n"
            f"def answer(milliseconds, cosine=1.0):\n    print(milliseconds, cosine)\n{body}\n"
        )
        monkeypatch.setattr(coreml_probe, "CHILD", (sys.executable, str(program)))

    return give


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes runtimes over an empty compiled package whose functions record their units and form."""
    loaded: list[tuple[int, str, str]] = []

    class Loaded:
        def predict(self, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
            return {}

    def load_function(_: Path, length: int, units: str, form: str) -> Loaded:
        loaded.append((length, units, form))
        return Loaded()

    def compile_model(_: str, destination: str) -> None:
        Path(destination).mkdir()

    monkeypatch.setenv("PPLX_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(coreml_runtime, "system_build", lambda: BUILD)
    monkeypatch.setattr(coreml_runtime, "load_function", load_function)
    monkeypatch.setattr("coremltools.models.utils.compile_model", compile_model)

    def make(units: str = "cpu+ane") -> coreml_runtime.CoreMLRuntime:
        return coreml_runtime.CoreMLRuntime(tmp_path, "f" * 64, units, LEAST_COSINE)

    make.loaded = loaded
    return make


def row(n_tokens: int) -> TokenRow:
    return TokenRow(np.arange(1, n_tokens + 1), ((0, n_tokens),))


# Inputs that Core ML keeps


def test_kept_inputs_are_never_freed_and_kept_outputs_never_change(artifact: Artifact) -> None:
    session, oracle = oracle_session(artifact.directory)
    seen: list[weakref.ref[np.ndarray]] = []
    outputs: list[np.ndarray] = []
    references: list[int] = []

    def predict(length: int, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Keep the inputs for a second, as Core ML does, in a thread that then lets go of them."""
        kept = list(inputs.values())
        seen.extend(weakref.ref(array) for array in kept)

        def release() -> None:
            time.sleep(1)
            references.append(min(sys.getrefcount(array) for array in kept))
            kept.clear()

        Thread(target=release).start()
        assert {array.dtype for array in kept} == {np.dtype(np.float32)}  # coremltools copies float16 arrays
        result = oracle(length, inputs)
        outputs.extend(result.values())
        return result

    session._predict = predict
    first = session.token_states(collate([row(5)], 0))
    expected = first.copy()
    for array in outputs:
        array[:] = np.nan  # Core ML uses its own output memory again
    session.token_states(collate([row(8)], 0))
    np.testing.assert_array_equal(first, expected)
    assert len({id(ref()) for ref in seen}) == 3  # one set of arrays for the function, filled in place
    del session
    time.sleep(1.3)
    gc.collect()
    assert all(ref() is not None for ref in seen)
    assert min(references) >= 3  # that of `kept`, that of getrefcount, and ours


def test_a_second_use_leaves_nothing_of_the_first(artifact: Artifact) -> None:
    session, _ = oracle_session(artifact.directory)
    alone = session.span_means(collate([row(3)], 0))
    session.span_means(collate([row(8)], 0))
    np.testing.assert_array_equal(session.span_means(collate([row(3)], 0)), alone)


# Children that die, hang or compute NaN


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("os.abort() if units != 'cpu' else answer(1.5)", "ended by signal 6"),
        ("time.sleep(60) if units != 'cpu' else answer(1.5)", "no result after"),
        ("sys.exit('the outputs contain NaN or infinity') if units != 'cpu' else answer(1.5)", "NaN or infinity"),
    ],
)
def test_the_cpu_takes_over_and_the_result_is_remembered(child, runtime, monkeypatch, body: str, why: str) -> None:
    monkeypatch.setattr(coreml_probe, "TIMEOUT_SECONDS", 1.0)
    child(body)
    with pytest.warns(UserWarning, match=f"cpu\\+ane failed at 8 tokens .*{why}.*runs on the cpu"):
        runtime().predict(8, {})
    child("os.abort()")  # no child is started again
    with pytest.warns(UserWarning, match=why):
        runtime().predict(8, {})
    assert runtime.loaded == [(8, "cpu", "fused")] * 2


@pytest.mark.parametrize(
    ("body", "form"),
    [
        ("os.abort() if form == 'fused' else answer(9.0)", "unfused"),
        ("os.abort() if form == 'unfused' else answer(9.0)", "fused"),
        ("answer(30.0 if form == 'fused' else 10.0)", "unfused"),
        ("answer(10.0 if form == 'fused' else 9.5)", "fused"),
    ],
)
def test_the_form_of_attention_that_works_or_is_much_faster_is_chosen(child, runtime, body: str, form: str) -> None:
    child(body)
    runtime().predict(16, {})
    assert runtime.loaded == [(16, "cpu+ane", form)]


def test_nan_is_an_error_of_the_child(artifact: Artifact) -> None:
    def predict(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {io.TOKEN_STATES: np.full((1, 8, 64), np.nan), io.SPAN_MEANS: np.zeros((1, 16, 64))}

    with pytest.raises(ModelError, match="NaN"):
        coreml_probe.measure(predict, 8, Reference.read(artifact.directory, 8))


def test_wrong_vectors_are_a_failure_and_what_works_nowhere_is_not_run(child, runtime) -> None:
    child("answer(1.0, 0.92 if units != 'cpu' else 0.999)")
    with pytest.warns(UserWarning, match=r"wrong vectors: cosine 0\.9200.*at least 0\.9900.*runs on the cpu"):
        runtime().predict(8, {})
    assert runtime.loaded == [(8, "cpu", "fused")]
    child("answer(1.0, 0.92) if form == 'fused' else os.abort()")
    for _ in range(2):  # tested, and remembered
        with pytest.raises(
            ModelError, match=r"neither on cpu\+ane nor on the cpu at 16 tokens.*signal 6.*another back"
        ):
            runtime().predict(16, {})
        child("answer(1.0)")
    assert len(runtime.loaded) == 1


@pytest.mark.parametrize("length", SHORT)
def test_a_function_is_compared_with_the_vectors_of_the_reference(artifact: Artifact, length: int) -> None:
    oracle = OraclePredict(artifact, half=True)
    reference = Reference.read(artifact.directory, length)
    n_tokens = len(reference.embeds)
    assert n_tokens == length - 1  # so that padding is tested
    milliseconds, cosine = coreml_probe.measure(lambda inputs: oracle(length, inputs), length, reference)
    assert milliseconds > 0
    assert 0.9999 < cosine <= 1

    def unmasked(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return oracle(length, dict(inputs) | {io.KEY_BIAS: np.zeros_like(inputs[io.KEY_BIAS])})

    assert coreml_probe.measure(unmasked, length, reference)[1] < cosine

    def wrong_states(inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        found = oracle(length, inputs)
        return dict(found) | {io.TOKEN_STATES: -found[io.TOKEN_STATES]}

    assert coreml_probe.measure(wrong_states, length, reference)[1] < -0.9


def test_the_bound_follows_the_figures_of_the_conversion() -> None:
    assert coreml_probe.least_cosine({}) == 0.995
    assert coreml_probe.least_cosine({"min_cosine": 0.98}) == pytest.approx(0.955)


def test_a_model_without_a_reference_must_be_converted_again(artifact: Artifact) -> None:
    with pytest.raises(ArtifactError, match=r"no reference for 4 tokens.*convert the model again"):
        Reference.read(artifact.directory, 4)


def test_the_child_itself_reports_why_it_cannot_load(tmp_path: Path) -> None:
    found = coreml_probe.probe(tmp_path / "none.mlmodelc", tmp_path, 8, "cpu", io.FUSED, LEAST_COSINE)
    assert isinstance(found, str)
    assert found


# What is left in the cache


def test_interrupted_and_old_compilations_are_removed(runtime, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "coreml"
    names = (".compiling-old", ".compiling-new", "model-ff-macos15.1.mlmodelc", f"other-ff-macos{BUILD}.mlmodelc")
    for name in names:
        (folder / name).mkdir(parents=True)
    os.utime(folder / ".compiling-old", (0, 0))
    (folder / "model-ff-macos15.1-cpu+ane-8.json").write_text("{}")
    (folder / f"other-ff-macos{BUILD}-cpu+ane-8.json").write_text("{}")
    runtime()
    assert {path.name for path in folder.iterdir()} == {
        ".compiling-new",
        f"other-ff-macos{BUILD}.mlmodelc",
        f"other-ff-macos{BUILD}-cpu+ane-8.json",
        f"model-ffffffffffffffff-macos{BUILD}.mlmodelc",
    }


def test_a_damaged_record_is_made_anew(child, runtime, tmp_path: Path) -> None:
    child("answer(1.0)")
    for content in ("{", '{"unknown": 1}', "[]"):
        made = runtime()
        file = tmp_path / "cache" / "coreml" / f"model-ffffffffffffffff-macos{BUILD}-cpu+ane-8.json"
        file.write_text(content)
        made.predict(8, {})
        assert Choice(**json.loads(file.read_text())) == Choice("cpu+ane", "fused", 1.0, 1.0)


# The compute plan


def test_a_plan_that_cannot_be_read_is_a_description_and_one_that_can_is_read_once(runtime, monkeypatch) -> None:
    def fail(self: object) -> dict[str, float]:
        raise RuntimeError("no plan")

    monkeypatch.setattr(coreml_runtime.CoreMLRuntime, "_shares", fail)
    assert runtime().device == "coreml (on cpu+ane; no compute plan: no plan)"
    monkeypatch.setattr(coreml_runtime.CoreMLRuntime, "_shares", lambda self: {"cpu": 0.25, "ane": 0.75})
    assert runtime().device == "coreml (ane 75%, cpu 25%)"
    monkeypatch.setattr(coreml_runtime.CoreMLRuntime, "_shares", fail)
    assert runtime().device == "coreml (ane 75%, cpu 25%)"


def test_weights_above_the_limit_of_the_neural_engine_are_refused(artifact: Artifact, monkeypatch) -> None:
    monkeypatch.setattr(coreml_runtime, "system_build", lambda: BUILD)
    monkeypatch.setattr("platform.mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(io, "ANE_WEIGHT_BYTES", 80_000)
    with pytest.raises(InputError, match=r"Neural Engine.*coreml-pal4.*compute_units"):
        open_session(artifact.directory)
