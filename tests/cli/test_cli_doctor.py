"""`doctor`: what it says of machine and backends, the self-test in real processes, how trials are judged and ended."""

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, run_fixture  # noqa: F401 (fixture)
from fakes import FakeSession, fake_embedder

import pplx_edge
from pplx_cli import availability, self_test
from pplx_cli.self_test import REFERENCE, Measurement, Outcome, Trial, texts
from pplx_edge import backends
from pplx_edge.errors import EdgeError
from pplx_edge.registry import BACKENDS, COREML, MLX, ONNX
from pplx_kit import host
from pplx_kit.findings import Verdict

INT8, NATIVE_INT8, STORED = (
    next(trial for trial in self_test.trials()[1:] if trial.backend == name) for name in ("onnx", "native", "mlx")
)


def measurement(codes: np.ndarray, **known: Any) -> Measurement:
    facts: dict[str, Any] = {
        "device": "cpu",
        "n_texts": len(codes),
        "n_tokens": 10,
        "open_seconds": 1.0,
        "tokens_per_second": 1234.0,
        "peak_bytes": 5_000_000,
    }
    return Measurement(codes=codes.tolist(), **facts | known)


@pytest.fixture
def codes() -> np.ndarray:
    return np.random.default_rng(0).integers(-127, 128, (len(texts()), 64))


@pytest.fixture
def on_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnx is the default backend, and there is no Core ML."""
    monkeypatch.setattr(backends, "default_backend", lambda: ONNX)
    monkeypatch.setattr(platform, "mac_ver", lambda: ("", ("", "", ""), ""))


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch, on_linux: None) -> Callable[[dict[str, Measurement | Outcome]], None]:
    """Gives trials by their labels what they measure, without processes; what is not named has no time."""

    def give(found: dict[str, Measurement | Outcome]) -> None:
        late = lambda trial: Outcome(trial=trial, verdict=Verdict.NOTE, why="no time was left for it")  # noqa: E731
        monkeypatch.setattr(self_test, "run_trial", lambda trial, *_: found.get(trial.label) or late(trial))

    return give


def test_it_says_what_the_machine_is_and_what_each_backend_lacks(run: Run, on_linux: None, monkeypatch):
    monkeypatch.setitem(BACKENDS, "mlx", replace(MLX, package="no_such_package"))
    status, out, err = run("doctor", "--no-test")
    assert (status, err) == (0, "")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert f"{pplx_edge.__version__}, Python {platform.python_version()}" in lines["pplx-edge"]
    assert f" {host.describe_host().n_cores} core" in lines["chip"]
    assert "GB" in lines["memory"]
    assert platform.system() in lines["system"]
    assert lines["onnx"].startswith("onnx        usable, the default: onnxruntime ")
    assert "int8 products are exact" in lines["onnx"]
    assert lines["mlx"] == "mlx         not usable: the mlx backend needs: pip install 'pplx-edge[mlx]'"
    assert lines["coreml"].startswith("coreml      not usable: Core ML runs on macOS 15 or later, this is ")
    assert "verdict" not in lines


def test_json_has_the_same_facts(run: Run, on_linux: None):
    status, out, err = run("doctor", "--no-test", "--json")
    assert (status, err, out.count("\n")) == (0, "", 1)
    facts = json.loads(out)
    assert facts["backends"].keys() == BACKENDS.keys()
    assert facts["backends"]["onnx"]["usable"] is True
    assert facts["backends"]["onnx"]["versions"].keys() == {"onnxruntime", "onnx"}
    assert facts["backends"]["coreml"]["usable"] is False
    assert facts["host"].keys() == {"chip", "n_cores", "system", "memory_bytes", "available_bytes"}
    assert facts["host"]["memory_bytes"] > 1e8
    assert (facts["default_backend"], facts["self_test"], facts["ok"]) == ("onnx", None, True)


def test_an_old_mac_has_no_core_ml_for_us_and_a_new_one_needs_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platform, "mac_ver", lambda: ("14.5", ("", "", ""), ""))
    assert "macOS 15 or later, this is macOS 14.5" in availability.backend_states()["coreml"].why
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), ""))
    monkeypatch.setitem(BACKENDS, "coreml", replace(COREML, package="no_such_package"))
    assert availability.backend_states()["coreml"].why == "the coreml backend needs: pip install 'pplx-edge[coreml]'"


@pytest.mark.parametrize(
    ("newest", "step"),
    [
        ((3, 99), "; install it again from a wheel: pip install"),
        (
            (3, 10),
            f"no builds of it for Python {sys.version_info[0]}.{sys.version_info[1]}, so make a virtual environment ",
        ),
    ],
)
def test_coremltools_without_its_compiled_modules_is_named_with_the_next_step(
    run: Run, tiny_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newest: tuple[int, int], step: str
):
    """Its source distribution installs on any Python without compiling anything."""
    (tmp_path / "coremltools").mkdir()
    (tmp_path / "coremltools" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "coremltools"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(platform, "mac_ver", lambda: ("15.1", ("", "", ""), ""))
    monkeypatch.setitem(BACKENDS, "coreml", replace(COREML, newest_python=newest))
    why = availability.backend_states()["coreml"].why
    assert why.startswith("the coreml backend cannot use the installed coremltools, which lacks libmilstoragepython")
    assert step in why
    assert json.loads(run("doctor", "--no-test", "--json")[1])["backends"]["coreml"]["usable"] is False
    status, _, err = run("convert", tiny_dir, "--to", "coreml-fp16", "--out", tmp_path / "out")
    assert status != 0
    assert why in err
    assert "Traceback" not in err


def test_a_backend_that_is_installed_and_cannot_be_loaded_is_not_usable(run: Run, on_linux: None, monkeypatch):
    monkeypatch.setitem(BACKENDS, "onnx", replace(ONNX, session="pplx_edge.backends.no_such_session:open_session"))
    status, out, _ = run("doctor", "--no-test")
    assert status == 1  # the default one
    line = next(line for line in out.splitlines() if line.startswith("onnx "))
    assert "not usable: installed, but it cannot be loaded (No module named" in line


def test_a_processor_without_exact_int8_makes_the_backend_unusable(on_linux: None, monkeypatch):
    def inexact() -> bool:
        raise EdgeError("ONNX Runtime does not multiply int8 exactly on this processor; use --format onnx-fp32")

    monkeypatch.setattr("pplx_edge.backends.onnx_options.needs_wide_int8", inexact)
    state = availability.backend_states()["onnx"]
    assert (state.usable, state.why.split(";")[0]) == (
        False,
        "ONNX Runtime does not multiply int8 exactly on this processor",
    )
    monkeypatch.setattr("pplx_edge.backends.onnx_options.needs_wide_int8", lambda: True)
    assert "no VNNI" in availability.backend_states()["onnx"].why


def test_a_mac_is_described_by_its_kernel(monkeypatch: pytest.MonkeyPatch):
    known = {"machdep.cpu.brand_string": "Apple M3 Pro", "hw.memsize": "19327352832", "sysctl.proc_translated": "1"}
    known |= {"-productVersion": "26.1", "-buildVersion": "25B78"}
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "mac_ver", lambda: ("16.0", ("", "", ""), "arm64"))  # as older programs are told
    monkeypatch.setattr(
        subprocess, "run", lambda argv, **_: subprocess.CompletedProcess(argv, 0, stdout=f"{known[argv[-1]]}\n")
    )
    found = host.describe_host()
    assert (found.chip, found.memory_bytes) == ("Apple M3 Pro", 19327352832)
    assert found.system.startswith("macOS 26.1 (25B78) ")
    assert "Rosetta" in found.system


def test_the_peak_of_memory_is_in_bytes_on_every_system(monkeypatch: pytest.MonkeyPatch):
    if sys.platform == "linux":
        block = np.ones(30_000_000, np.uint8)
        assert block.nbytes < host.peak_rss() < 1e11
    monkeypatch.setattr(host, "read_lines", lambda _: [])  # no /proc
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(sys, "platform", "darwin")
    assert host.peak_rss() == pytest.approx(used, rel=0.2)
    monkeypatch.setattr(sys, "platform", "linux")
    assert host.peak_rss() == pytest.approx(1024 * used, rel=0.2)


def test_the_self_test_runs_each_backend_in_a_process_of_its_own(
    run: Run, tiny_dir: Path, tmp_path: Path, on_linux: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PPLX_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(self_test, "BUILT_IN", str(tiny_dir))
    monkeypatch.setattr(self_test, "BUDGET_SECONDS", 500.0)  # of a machine that others use too
    monkeypatch.setattr(self_test, "trials", lambda: [REFERENCE, INT8])
    status, out, err = run("doctor", "--json")
    assert status == 0, out + err
    assert err.splitlines() == ["pplx-edge: self-test: onnx-fp32", "pplx-edge: self-test: onnx-int8"]
    reference, int8 = json.loads(out)["self_test"]
    assert (reference["format"], reference["default"], reference["min_cosine"]) == ("onnx-fp32", False, None)
    assert (int8["format"], int8["default"], int8["verdict"], int8["why"]) == ("onnx-int8", True, "ok", "")
    codes = [
        pplx_edge.load(tiny_dir, artifact_format=format, backend="onnx")
        .encode(texts()[: int8["n_texts"]])
        .astype(float)
        for format in ("onnx-fp32", "onnx-int8")
    ]
    cosines = (codes[0] * codes[1]).sum(1) / np.linalg.norm(codes[0], axis=1) / np.linalg.norm(codes[1], axis=1)
    assert int8["min_cosine"] == pytest.approx(cosines.min(), abs=1e-9)
    assert int8["min_cosine"] < 0.99999
    assert int8["largest_step"] == np.abs(codes[0] - codes[1]).max()
    assert int8["n_texts"] == reference["n_texts"] == len(texts())
    assert int8["device"] == "cpu"
    assert int8["tokens_per_second"] > 0
    assert 3e7 < int8["peak_bytes"] < 2e9
    assert "codes" not in int8


def test_a_sound_machine_is_said_to_be_sound_line_by_line(run: Run, trials, codes: np.ndarray):
    near = codes.copy()
    near[:, 0] += np.where(near[:, 0] > 0, -3, 3)
    of_ours = {"onnx-int8": measurement(near), NATIVE_INT8.label: measurement(near)}
    trials({"onnx-fp32": measurement(codes)} | of_ours | {STORED.label: measurement(codes[:4])})
    status, out, _ = run("doctor")
    assert status == 0
    lines = out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("self-test"))
    assert "the reference; ok" in lines[start + 1]
    assert "largest step 3; ok" in lines[start + 2]
    assert "32 texts, 10 tokens  1,234 tokens/s  peak 5.0 MB" in lines[start + 2]
    assert lines[start + 1].index("1,234") == lines[start + 2].index("1,234")
    assert "verdict     sound (" in lines[-1]


def test_codes_that_are_not_the_models_fail_with_status_1(run: Run, trials, codes: np.ndarray):
    trials({"onnx-fp32": measurement(codes), "onnx-int8": measurement(np.roll(codes, 1, axis=1))})
    status, out, _ = run("doctor")
    assert status == 1
    assert "wrong: cosine " in out
    assert "with onnx-fp32, at least 0.97 is expected" in out
    assert "not sound; failed: onnx-int8" in out.splitlines()[-1]
    facts = json.loads(run("doctor", "--json")[1])
    assert facts["ok"] is False
    assert facts["self_test"][1]["min_cosine"] < 0.5


def test_one_bad_text_among_many_is_enough_to_fail(codes: np.ndarray):
    bad = codes.copy()
    bad[17] = -bad[17]
    outcome = self_test.judged(INT8, measurement(bad), measurement(codes))
    assert (outcome.verdict, outcome.min_cosine) == ("wrong", pytest.approx(-1))
    short = self_test.judged(INT8, measurement(bad[:10]), measurement(codes))
    assert (short.verdict, short.min_cosine, short.largest_step) == ("ok", pytest.approx(1), 0)


@pytest.mark.parametrize("trial", [INT8, STORED], ids=lambda trial: trial.label)
def test_a_format_is_held_to_what_it_can_keep(trial: Trial, codes: np.ndarray):
    noise = np.random.default_rng(1).standard_normal(codes.shape)
    far = np.sqrt(1 / trial.least_cosine**2 - 1) * np.linalg.norm(codes, axis=1, keepdims=True)
    for share, verdict in ((0.7, "ok"), (1.3, "wrong")):
        moved = codes + share * far * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        assert self_test.judged(trial, measurement(moved), measurement(codes)).verdict == verdict


def test_another_backend_that_fails_is_enough_for_status_1_and_one_that_is_late_is_not(
    run: Run, trials, codes: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "pplx_cli.commands.doctor.backend_states", lambda: dict.fromkeys(("onnx", "mlx"), usable_state())
    )
    good = {"onnx-fp32": measurement(codes), "onnx-int8": measurement(codes)}
    trials(good)
    status, out, _ = run("doctor")
    assert status == 0
    assert "sound; unfinished: mlx, as stored" in out.splitlines()[-1]
    crashed = Outcome(trial=STORED, verdict=Verdict.WRONG, why="crashed by SIGSEGV (it said nothing)")
    trials(good | {STORED.label: crashed})
    status, out, _ = run("doctor")
    assert status == 1
    assert "wrong: crashed by SIGSEGV" in out


def usable_state() -> availability.BackendState:
    return availability.BackendState(usable=True, why="", versions={})


def test_a_default_that_was_not_tested_is_not_called_sound(run: Run, trials, codes: np.ndarray):
    trials({"onnx-fp32": measurement(codes)})
    status, out, _ = run("doctor")
    assert status == 1
    assert "not known: the default backend was not tested to the end" in out.splitlines()[-1]
    trials({"onnx-int8": measurement(codes)})
    status, out, _ = run("doctor")
    assert status == 1
    assert "nothing to compare with: onnx-fp32 gave no vectors" in out


def test_trials_go_reference_first_and_then_the_default(monkeypatch: pytest.MonkeyPatch, codes: np.ndarray):
    asked: list[tuple[str, float, float]] = []

    def measured(trial: Trial, seconds: float, limit: float) -> Measurement:
        asked.append((trial.label, seconds, limit))
        return measurement(codes)

    monkeypatch.setattr(backends, "default_backend", lambda: MLX)
    monkeypatch.setattr(self_test, "run_trial", measured)
    outcomes = self_test.run_trials(["onnx", "mlx"], lambda _: None, 28.0)
    assert [label for label, *_ in asked] == ["onnx-fp32", "mlx, as stored", "onnx-int8"]
    assert [outcome.trial.is_default for outcome in outcomes] == [False, True, False]
    for (_, seconds, limit), share in zip(asked, (1 / 3, 1 / 2, 1), strict=True):
        assert seconds == pytest.approx(share * limit)
        assert limit == pytest.approx(28, abs=2)
    assert self_test.passed(outcomes)


def test_an_error_of_a_process_is_told(tiny_dir: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(self_test, "BUILT_IN", str(tiny_dir / "nowhere"))
    outcome = self_test.run_trial(INT8, 100.0, 100.0)
    assert isinstance(outcome, Outcome)
    assert outcome.verdict == "wrong"
    assert "nowhere: no such directory" in outcome.why


def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Make the program start a shell script instead of Python."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo broken things >&2; exit 3", "ended with status 3 (broken things)"),
        ("kill -SEGV $$", "crashed by SIGSEGV (it said nothing)"),
        ("exit 0", "ended with status 0 (it said nothing)"),
    ],
)
def test_a_process_that_gives_no_result_has_failed(tmp_path: Path, monkeypatch, script: str, said: str):
    fake_python(tmp_path, monkeypatch, script)
    outcome = self_test.run_trial(INT8, 10.0, 60.0)
    assert isinstance(outcome, Outcome)
    assert (outcome.verdict, outcome.why) == ("wrong", said)


def test_a_process_that_hangs_is_ended_in_time_even_when_it_does_not_want_to(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(self_test, "_ENDING_SECONDS", 0.3)
    monkeypatch.setattr(self_test, "_LEAST_SECONDS", 0.5)
    fake_python(tmp_path, monkeypatch, f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep 0.1; done")
    started = time.monotonic()
    outcome = self_test.run_trial(INT8, 1.0, 2.3)
    assert time.monotonic() - started < 8  # 2 and 0.3 seconds on a machine of one's own
    assert isinstance(outcome, Outcome)
    assert outcome.verdict == "note"
    assert "run doctor again" in outcome.why
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    late = self_test.run_trial(INT8, 1.0, 0.4)
    assert isinstance(late, Outcome)
    assert (late.verdict, late.why) == ("note", "no time was left for it")


class SlowSession(FakeSession):
    """A session that takes a hundredth of a second a token, by a clock of its own."""

    seconds = 0.0

    def span_means(self, batch: Any) -> np.ndarray:
        SlowSession.seconds += 0.01 * int(batch.attention_mask.sum())
        return super().span_means(batch)


@pytest.mark.parametrize(("seconds", "n_texts"), [(1.0, 2), (10.0, 8), (60.0, 16), (2000.0, 32)])
def test_a_slow_backend_reads_as_many_texts_as_it_has_time_for(monkeypatch, seconds: float, n_texts: int):
    SlowSession.seconds = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: SlowSession.seconds)
    monkeypatch.setattr(time, "perf_counter", lambda: SlowSession.seconds)
    monkeypatch.setattr(self_test, "load", lambda *_, **__: fake_embedder(SlowSession()))
    found = self_test.measure("nano", "mlx", None, seconds)
    assert SlowSession.seconds <= seconds
    assert found.tokens_per_second == pytest.approx(100)
    expected = fake_embedder().encode(texts()[: found.n_texts])
    np.testing.assert_array_equal(np.array(found.codes), expected)
    assert found.n_texts == n_texts
    tokenizer = fake_embedder().tokenizer
    assert found.n_tokens == sum(tokenizer.count(text) for text in texts()[: found.n_texts])


def test_the_texts_are_many_different_and_of_rising_length():
    lengths = [len(text) for text in texts()]
    assert len(set(texts())) == self_test.N_TEXTS == 32
    assert max(lengths) > 5 * min(lengths)
    assert sum(lengths[:8]) < sum(lengths[8:16]) < sum(lengths[16:24]) < sum(lengths[24:])


def test_looking_only_loads_neither_torch_nor_matplotlib_nor_the_benchmarks():
    program = "import sys; import pplx_cli; pplx_cli.main(['doctor', '--no-test']); print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    loaded = set(output.splitlines()[-1].split())
    assert "pplx_cli.commands.doctor" in loaded
    assert loaded & {"torch", "matplotlib", "pplx_bench", "pplx_convert", "transformers"} == set()


def test_what_is_measured_is_kept_apart_from_what_is_judged(codes: np.ndarray):
    outcome = self_test.judged(REFERENCE, measurement(codes), None)
    assert (outcome.verdict, outcome.min_cosine) == ("ok", None)
    assert not self_test.passed([outcome])
    assert not self_test.passed([replace(outcome, verdict=Verdict.WRONG)])
