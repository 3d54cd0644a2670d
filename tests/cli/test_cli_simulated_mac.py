"""Both reports of `doctor` on a simulated Mac: each way in which Core ML fails is a line, and costs nothing else."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from command_line import Run, run_fixture  # noqa: F401 (fixture)

pytest.importorskip("coremltools")

import simulated_mac
from coreml_models import converted

import pplx_edge
from pplx_cli import self_test
from pplx_cli.availability import BackendState
from pplx_cli.report import writing
from pplx_cli.self_test import REFERENCE, Measurement
from pplx_edge.registry import COREML
from pplx_kit.findings import Verdict

LENGTH = 64
ON_CPU = "; this function runs on the cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, its conversion to Core ML with one function, and the codes of the texts; read only."""
    folder = tmp_path_factory.mktemp("mac")
    source = write_checkpoint(folder / "checkpoint")
    converted(source, folder / "model", lengths=(LENGTH,))
    exact = pplx_edge.load(source, backend="onnx", artifact_format="onnx-fp32").encode(list(simulated_mac.TEXTS))
    (folder / "codes.json").write_text(json.dumps(exact.tolist()))
    return folder


@pytest.fixture
def mac(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the children of `doctor` run on a Mac with a fault."""
    states = {"coreml": BackendState(usable=True, why="", versions={})}
    monkeypatch.setattr("pplx_cli.commands.doctor.backend_states", lambda: states | {"onnx": states["coreml"]})
    monkeypatch.setattr(writing, "backend_states", lambda: states)
    monkeypatch.setattr(self_test, "BUILT_IN", str(folder / "model"))
    monkeypatch.setattr(self_test, "BUDGET_SECONDS", 200.0)  # of a machine that others use too
    monkeypatch.setenv("SIMULATED_MODEL", str(folder / "model"))
    coreml = next(trial for trial in self_test.trials() if trial.backend == COREML.name)
    monkeypatch.setattr(self_test, "trials", lambda: [REFERENCE, coreml])
    codes = json.loads((folder / "codes.json").read_text())
    exact = Measurement(
        device="cpu", codes=codes, n_texts=len(codes), n_tokens=1, open_seconds=1, tokens_per_second=1, peak_bytes=1
    )
    run_trial = self_test.run_trial
    monkeypatch.setattr(
        self_test, "run_trial", lambda trial, *limits: exact if trial is REFERENCE else run_trial(trial, *limits)
    )

    def give(fault: str) -> None:
        assert fault in simulated_mac.FAULTS
        program = (simulated_mac.__file__, fault, str(folder / "checkpoint"), str(tmp_path))
        monkeypatch.setattr(self_test, "PROGRAM", (*program, "self-test"))
        monkeypatch.setattr(writing, "CHILD", (sys.executable, *program, "report"))

    return give


def require_ended(tmp_path: Path) -> None:
    """Check that the process that hung, if it came so far, is gone."""
    if (tmp_path / simulated_mac.PID).exists():
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / simulated_mac.PID).read_text()), 0)


@pytest.mark.parametrize(
    ("fault", "verdict", "said"),
    [
        ("keeps", "largest step 1; ok", ""),
        ("keeps new arrays", "wrong: crashed by SIGABRT", ""),
        ("aborts", "; ok; Core ML on cpu+ane failed at 64 tokens", "fused: the process was ended by signal 6"),
        ("aborts everywhere", "wrong: ", "works neither on cpu+ane nor on the cpu at 64 tokens"),
        ("nan", "; ok; Core ML on cpu+ane failed at 64 tokens", "NaN or infinity"),
        ("wrong", "; ok; Core ML on cpu+ane failed at 64 tokens", "wrong vectors: cosine "),
        ("nan later", "wrong: ", "NaN"),
    ],
)
def test_doctor_has_a_line_for_each_fault(run: Run, mac, fault: str, verdict: str, said: str) -> None:
    mac(fault)
    _, out, err = run("doctor")
    (line,) = [line for line in out.splitlines() if line.split()[:1] == [COREML.default_format]]
    assert verdict in line, out + err
    assert said in line
    assert (ON_CPU in line) == ("; ok; " in verdict)


def test_doctor_ends_a_test_that_hangs(mac, tmp_path: Path) -> None:
    mac("hangs")
    _, outcome = self_test.run_trials(["onnx", "coreml"], lambda _: None, 9.0)
    assert outcome.verdict == Verdict.NOTE
    assert "not done after" in outcome.why
    require_ended(tmp_path)


def test_doctor_does_not_wait_for_the_compute_plan(mac, monkeypatch: pytest.MonkeyPatch) -> None:
    mac("plans")
    wait = subprocess.Popen.communicate

    def until_measured(child: subprocess.Popen[bytes], asked: bytes, timeout: float) -> None:
        """Play a limit that is reached after the measurement, on a machine of any speed."""
        result = Path(json.loads(asked)["result"])
        with suppress(subprocess.TimeoutExpired):
            wait(child, asked, timeout=0.1)
        until = time.monotonic() + timeout
        while not result.is_file() and child.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        raise subprocess.TimeoutExpired(child.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", until_measured)
    _, outcome = self_test.run_trials(["onnx", "coreml"], lambda _: None, 200.0)
    assert outcome.verdict == Verdict.OK, outcome
    assert outcome.measured is not None
    assert outcome.measured.device == "device not known yet"


@pytest.mark.parametrize(
    ("fault", "function", "speed"),
    [
        ("keeps", "ok         coreml_function", "ok         speed"),
        ("aborts", "crashed    coreml_function coreml-fp16 64 cpu+ane fused: ended by signal 6", ON_CPU),
        ("nan", "failed     coreml_function coreml-fp16 64 cpu+ane fused: the outputs contain NaN", ON_CPU),
    ],
)
def test_the_report_has_a_line_for_each_fault(
    run: Run, mac, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, function: str, speed: str
) -> None:
    mac(fault)
    plan = [
        ("coreml_function", ("coreml-fp16", str(LENGTH), "cpu+ane", "fused")),
        ("speed", ("coreml:coreml-fp16", "8")),
        ("coreml_plan", ("coreml-fp16", "cpu+ane")),
    ]
    monkeypatch.setattr(writing, "plan", lambda _: plan)
    status, out, err = run("doctor", "--report", str(tmp_path / "report.json"))
    assert status == 0, err
    steps = json.loads((tmp_path / "report.json").read_text())["steps"]
    lines = out.splitlines()
    assert function in lines[0], lines
    assert speed in lines[1]
    assert steps[1]["status"] == "ok"
    assert min(steps[1]["tokens_per_second"].values()) > 0
    assert steps[2]["device"].startswith("coreml (on cpu+ane; no compute plan")  # the simulation has none
    if fault == "keeps":
        assert steps[0]["milliseconds"] > 0
        assert steps[0]["cosine"] > 0.999


def test_the_report_ends_a_step_that_hangs(mac, tmp_path: Path) -> None:
    mac("hangs")
    found = writing.run_step("coreml_function", ("coreml-fp16", str(LENGTH), "cpu+ane", "fused"), time.monotonic() + 6)
    assert found["status"] == "timeout"
    require_ended(tmp_path)
