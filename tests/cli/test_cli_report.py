"""`doctor --report`: its steps in real processes, how a step that dies is reported, and the advice for an M5."""

import json
import sys
import time
from pathlib import Path

import pytest
from command_line import Run, run_fixture  # noqa: F401 (fixture)

from pplx_cli.report import steps, writing
from pplx_edge.registry import COREML

ARCHITECTURE = "applegpu_g17s"


def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = tmp_path / "child.py"
    program.write_text(f"import os, sys, time\n{body}\n")
    monkeypatch.setattr(writing, "CHILD", (sys.executable, str(program)))


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        ("os.abort()", "crashed", "ended by signal 6"),
        ("time.sleep(60)", "timeout", "no result after 2 s"),
        ("raise RuntimeError('the outputs contain NaN')", "failed", "RuntimeError: the outputs contain NaN"),
        ("print('no JSON')", "failed", "exit status 0"),
    ],
)
def test_a_step_that_dies_is_a_line(tmp_path: Path, monkeypatch, body: str, status: str, why: str) -> None:
    child(tmp_path, monkeypatch, body)
    found = writing.run_step("matmul", (), time.monotonic() + 2.4)
    assert (found["status"], found["why"]) == (status, why)


def test_the_report_has_every_step_even_if_all_of_them_die(run: Run, tmp_path: Path, monkeypatch) -> None:
    child(tmp_path, monkeypatch, "os.abort()")
    status, out, _ = run("doctor", "--report", str(tmp_path / "report.json"), "--quick")
    report = json.loads((tmp_path / "report.json").read_text())
    assert status == 0
    assert len(report["steps"]) == len(writing.plan(quick=True))
    assert report["steps"][0] == report["steps"][0] | {"step": "machine", "status": "crashed"}
    assert "crashed    machine: ended by signal 6" in out
    if sys.platform == "linux":
        coreml = [step for step in report["steps"] if step["step"].startswith("coreml_function")]
        assert coreml
        assert all(step["status"] == "skipped" and "macOS 15" in step["why"] for step in coreml)


def test_the_machine_is_described_in_a_process_of_its_own() -> None:
    found = writing.run_step("machine", (), time.monotonic() + 100)
    assert found["status"] == "ok"
    assert found["memory_bytes"] > 1e8
    assert found["wheels"]["onnxruntime"][0]


def test_nothing_is_proven_without_a_gpu() -> None:
    pytest.importorskip("mlx.core")
    if sys.platform == "darwin":
        pytest.skip("there may be a GPU here")
    with pytest.raises(steps.Skipped, match="no GPU here"):
        steps.proof("mlx")


def test_a_conversion_is_described_and_made_once(tiny_dir: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PPLX_EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(steps, "BUILT_IN", str(tiny_dir))
    found = steps.convert("onnx:onnx-fp32")
    assert found["bytes"] > 100_000
    assert found["parity"]["largest_step"] <= 1
    assert "layer_cosines" not in found["parity"]
    monkeypatch.setattr("pplx_convert.convert", None)
    assert steps.convert("onnx:onnx-fp32")["bytes"] == found["bytes"]


def test_parity_with_itself_is_exact(tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPLX_EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(steps, "BUILT_IN", str(tiny_dir))
    assert steps.parity("onnx:onnx-fp32") == {"min_cosine": pytest.approx(1), "largest_step": 0}
    found = steps.parity("onnx:onnx-int8")
    assert 0.9 < found["min_cosine"] < 0.99999


def test_speed_is_measured_by_length_up_to_the_limit(tiny_dir: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PPLX_EDGE_CACHE", str(tmp_path))
    monkeypatch.setattr(steps, "BUILT_IN", str(tiny_dir))
    monkeypatch.setattr(steps, "_SECONDS_PER_LENGTH", 0.01)
    found = steps.speed("onnx:onnx-fp32", "32,1000000")
    (short, long) = found["tokens_per_second"].values()
    assert short > 0
    assert long is None
    assert found["peak_bytes"] > 1e7


def test_the_full_plan_times_every_function_in_both_forms_on_all_units() -> None:
    functions = [arguments for name, arguments in writing.plan(quick=False) if name == "coreml_function"]
    assert len(functions) == len(set(functions)) == 5 * 3 * 2
    assert (COREML.default_format, "512", "cpu+ane", "unfused") in functions


@pytest.mark.parametrize(
    ("architecture", "tflops", "tags", "advice"),
    [
        (ARCHITECTURE, 15.0, ["0.32.4", "py3-none-macosx_15_0_arm64"], "built for macOS 15"),
        (ARCHITECTURE, 15.0, ["0.32.4", "py3-none-macosx_26_0_arm64"], "macOS 26.2"),
        (ARCHITECTURE, 56.0, ["0.32.4", "py3-none-macosx_26_0_arm64"], ""),
        ("applegpu_g13s", 3.0, ["0.32.4", "py3-none-macosx_15_0_arm64"], ""),
    ],
)
def test_an_m5_without_neural_accelerators_is_told_how_to_get_them(architecture, tflops, tags, advice) -> None:
    found = steps.accelerator_advice(architecture, tflops, tags)
    assert advice in found
    assert bool(found) == bool(advice)
    assert not found or "SYSTEM_VERSION_COMPAT=0 pip install --force-reinstall mlx mlx-metal" in found


def test_quick_needs_report(run: Run) -> None:
    status, _, err = run("doctor", "--quick")
    assert status == 2
    assert "--quick needs --report FILE" in err
