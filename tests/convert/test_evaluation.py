"""`pplx-edge info DIR --evaluate`: what it computes, and what it says when it cannot."""

import json
import shutil
from pathlib import Path

import pytest
from command_line import Run, run_fixture  # noqa: F401 (fixture)

from pplx_edge.weights.artifact import Artifact

pytest.importorskip("coremltools")

from pplx_convert import convert


@pytest.fixture(scope="module")
def artifact(tiny_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return convert(tiny_dir, tmp_path_factory.mktemp("coreml") / "out", "coreml-fp16", source_name=str(tiny_dir))


def test_a_program_is_evaluated_beside_its_source(run: Run, artifact: Artifact) -> None:
    status, out, _ = run("info", artifact.directory, "--evaluate", "--json")
    evaluation = json.loads(out)["evaluation"]
    assert status == 0
    assert evaluation["reference"]["min_cosine"] == pytest.approx(artifact.parity["min_cosine"], abs=1e-6)
    assert evaluation["reference"]["largest_step"] == artifact.parity["largest_step"]
    assert 0.99999 < evaluation["rounding"]["min_cosine"] < 1
    assert len(evaluation["rounding"]["layer_cosines"]) == 4


def test_an_altered_weight_is_seen(run: Run, artifact: Artifact, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(artifact.directory, broken)
    (weights,) = (broken / "model.mlpackage").rglob("weight.bin")
    raw = bytearray(weights.read_bytes())
    raw[1000:5000] = raw[6000:10000]  # within the first matrices
    weights.write_bytes(raw)
    _, out, _ = run("info", broken, "--evaluate", "--json")
    assert json.loads(out)["evaluation"]["reference"]["min_cosine"] < 0.9995 < artifact.parity["min_cosine"]


def test_the_figures_are_told_in_words(run: Run, artifact: Artifact) -> None:
    out = run("info", artifact.directory, "--evaluate")[1]
    assert "float16 against float32: cosine at least 1.00000" in out
    assert "against the reference: cosine at least 1.00000" in out


def test_what_is_no_core_ml_model_is_refused(run: Run, tiny_dir: Path) -> None:
    status, _, err = run("info", tiny_dir, "--evaluate")
    assert status == 2
    assert "not a Core ML model; --evaluate computes those" in err
