"""The benchmarks as they are run, on the tiny shape: children, messages, crashes, exit codes."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernels import needs_kernels

from pplx_bench import child, machine
from pplx_bench.speed import peers
from pplx_cli import main

PYTHON = sys.executable
MEASURE_PEER = "pplx_bench.speed.measure:measure_peer"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@needs_kernels
def test_speed_of_ours(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = work / "speed.jsonl"
    ours = ["--peers", "onnx,native", "--rows", "1x16,mixed"]
    options = ["--shape", "tiny", *ours, "--work", str(work), "--threads", "1"]
    assert main(["bench", "speed", *options, "--profile", "--no-ceilings", "--repeats", "1", "--json", str(file)]) == 0
    printed = capsys.readouterr()
    assert "pplx-edge native-int8" in printed.out
    assert "pplx-edge onnx-int8" in printed.out
    assert "where native spends time" in printed.out
    assert "where onnx spends time" in printed.out
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [line for line in lines if line["kind"] == "row"]
    measured = [(line["peer"], line["row"]) for line in rows]
    assert measured == [("native", "1x16"), ("native", "mixed"), ("onnx", "1x16"), ("onnx", "mixed")]
    assert all(line["cosine"] > 0.99 and line["tokens_per_second"] > 0 and line["artifact"] for line in rows)
    profiles = [line for line in lines if line["kind"] == "profile"]
    assert [profile["peer"] for profile in profiles] == ["native", "native", "onnx", "onnx"]
    assert all(sum(profile["shares"].values()) == pytest.approx(1, abs=0.02) for profile in profiles)
    assert all(profile["shares"][phase] > 0 for profile in profiles[:2] for phase in ("attention", "gate and up"))


@needs_kernels
def test_memory(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "memory", "--shape", "tiny", "--work", str(work), "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("never") == 6  # of two formats
    assert not (work / "memory-tiny").exists()


def test_a_missing_peer_is_listed_with_its_command(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = peers.Peer(name="openvino", label="OpenVINO int8", module="none", needs=("no-such-thing",))
    monkeypatch.setitem(peers.PEERS, "openvino", absent)
    options = ["--shape", "tiny", "--peers", "openvino", "--rows", "1x16", "--work", str(work), "--no-ceilings"]
    assert main(["bench", "speed", *options]) == 0
    assert "OpenVINO int8: not installed: no-such-thing: pip install no-such-thing" in capsys.readouterr().out


def start_source(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout: float | None = None
) -> Iterator[child.Message]:
    """The messages of a child that runs this source instead of `pplx_bench.child`."""
    script = tmp_path / "python"
    script.write_text(f"#!{PYTHON}\nimport json, os, sys, time\n{source}", encoding="utf-8")
    script.chmod(0o755)
    monkeypatch.setattr(child.sys, "executable", str(script))
    return child.run_task(MEASURE_PEER, {}, 1, tmp_path / "log", timeout)


def test_a_child_that_dies_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(child.ChildFailed, match="SIGABRT"):
        list(start_source("sys.stdin.read(); os.abort()", tmp_path, monkeypatch))
    with pytest.raises(child.ChildFailed, match="status 3"):
        list(start_source("sys.stdin.read(); sys.exit(3)", tmp_path, monkeypatch))
    with pytest.raises(child.ChildFailed, match="out of time"):
        list(start_source("sys.stdin.read(); time.sleep(60)", tmp_path, monkeypatch, timeout=0.3))


def test_what_a_child_raises_is_reported_and_logged(tmp_path: Path) -> None:
    with pytest.raises(child.ChildFailed, match="KeyError"):
        list(child.run_task(MEASURE_PEER, {"peer": "no such peer"}, 1, tmp_path / "log"))
    assert "Traceback" in (tmp_path / "log").read_text(encoding="utf-8")


def test_what_a_child_said_before_it_died_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = 'sys.stdin.read(); print(json.dumps({"kind": "row"}), flush=True); os.abort()'
    messages = start_source(source, tmp_path, monkeypatch)
    assert next(messages) == {"kind": "row"}
    with pytest.raises(child.ChildFailed):
        next(messages)


@pytest.mark.parametrize("benchmark", ["speed", "memory"])
def test_help_has_an_example(benchmark: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", benchmark, "--help"])
    assert ended.value.code == 0
    assert "example:\n  pplx-edge bench" in capsys.readouterr().out


def test_threads_are_set_for_every_library() -> None:
    variables = child._environment(3)
    assert {variables[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}


def test_machine_is_described() -> None:
    described = machine.describe()
    assert described["cores"] >= 1
    assert described["memory_gb"] > 0
    assert machine.peak_rss() > 1_000_000
    assert machine.software()["numpy"]
    assert machine.commit()
