"""What is printed and written: tables, marks, JSON lines, and the profile's bookkeeping."""

import json
from pathlib import Path
from typing import Any

import pytest

from pplx_bench.memory import measure as memory
from pplx_bench.memory.report import memory_report
from pplx_bench.shapes import shape_config
from pplx_bench.speed import ceilings, peers, plot, profiling
from pplx_bench.speed.report import Results, speed_report
from pplx_bench.speed.workload import parse_rows
from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec

HEADER: dict[str, Any] = {
    "benchmark": "speed",
    "shape": "0.6b",
    "layers": None,
    "threads": 2,
    "parameters": 5,
    "commit": "abc",
    "artifact": "0123456789abcdef",
    "machine": {"cpu": "a processor", "cores": 2, "memory_gb": 8.0, "flags": ["avx2"]},
    "versions": {"numpy": "2"},
}


def row(name: str, rate: float, **changes: Any) -> dict[str, Any]:
    message = {
        "kind": "row",
        "row": name,
        "tokens": 100,
        "tokens_per_second": rate,
        "seconds": 100 / rate,
        "spread": 0.02,
        "samples": [100 / rate] * 3,
        "warmed": True,
        "others": 0.0,
        "rss": 5e8,
        "way": "row by row",
        "trials": {},
    }
    return message | changes


def opened(cosine: float = 0.999) -> dict[str, Any]:
    return {"kind": "opened", "load_seconds": 1.5, "rss": 4e8, "cosine": cosine}


@pytest.fixture
def results() -> Results:
    made = Results(header=HEADER)
    made.add_peer("native", [opened(), row("1x16", 300.0), row("8x512", 200.0, others=0.5)])
    slow = {"kind": "row", "row": "8x512", "tokens": 4096, "skipped": "about 900 s expected"}
    made.add_peer("torch-fp32", [opened(), row("1x16", 100.0, warmed=False), slow])
    made.add_peer("openvino", [{"kind": "unavailable", "reason": "not installed: openvino: pip install openvino"}])
    made.rooflines = {"1x16": 600.0, "8x512": 1000.0}
    return made


def lines_of(text: str, start: str) -> list[list[str]]:
    return [line.removeprefix(start).split() for line in text.splitlines() if line.startswith(start)]


def test_speeds_winners_and_marks(results: Results) -> None:
    text = speed_report(results)
    assert lines_of(text, "pplx-edge native-int8 ")[0] == ["300*", "200*~", "1.5", "0.50", "0.9990"]
    assert lines_of(text, "transformers fp32 ")[0] == ["100¹", "–", "1.5", "0.50", "0.9990"]
    assert lines_of(text, "library roofline ")[0] == ["600", "1,000"]


def test_ratios_are_ours_over_the_peer(results: Results) -> None:
    text = speed_report(results)
    assert lines_of(text, "transformers fp32 ")[1] == ["3.00", "–"]
    assert lines_of(text, "library roofline ")[1] == ["0.50", "0.20"]


def test_nothing_is_skipped_silently(results: Results) -> None:
    text = speed_report(results)
    assert "  OpenVINO int8: not installed: openvino: pip install openvino" in text
    assert "  transformers fp32, 8x512: about 900 s expected" in text


def test_unfaithful_vectors_are_told(results: Results) -> None:
    assert "no longer the model's" not in speed_report(results)
    results.peers["torch-fp32"].opened = opened(0.95)
    assert "transformers fp32: cosine 0.950: fast, but its vectors are no longer the model's" in (speed_report(results))


def test_fewer_layers_are_said_first_and_loudly(results: Results) -> None:
    results.header = HEADER | {"layers": 2}
    assert speed_report(results).startswith("*** ONLY 2 LAYERS")


def test_every_line_of_json_stands_alone(results: Results) -> None:
    lines = results.lines()
    assert all(line["commit"] == "abc" and line["artifact"] == HEADER["artifact"] for line in lines)
    kinds = [line["kind"] for line in lines]
    assert kinds == ["ceilings", "row", "row", "row", "skipped", "unavailable"]


def test_no_peer_at_all_still_prints() -> None:
    assert "tokens/s" in speed_report(Results(header=HEADER))


def test_memory_verdicts() -> None:
    about = {"format": "native-int8", "seconds": 1.0, "torch": False}
    good = about | {"name": "convert", "rss": 1.4e9, "limit_gb": 1.5, "passed": True}
    bad = about | {"name": "open", "rss": 1.1e9, "limit_gb": 1.0, "passed": False}
    dead = {"name": "long", "format": "onnx-int8", "limit_gb": 2.0, "passed": False, "error": "ended by SIGKILL"}
    text = memory_report(HEADER, [good, bad, dead])
    assert lines_of(text, "native-int8: convert ")[0] == ["1.400", "1.50", "pass", "1.0", "never"]
    assert lines_of(text, "native-int8: open ")[0] == ["1.100", "1.00", "FAILED", "1.0", "never"]
    assert lines_of(text, "onnx-int8: long ")[0] == ["–", "2.00", "FAILED", "–", "–"]
    assert "onnx-int8: long: ended by SIGKILL" in text


def test_importing_torch_fails_a_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def passed(rss: float, torch: bool) -> bool:
        messages = iter([{"kind": "peak", "rss": rss, "seconds": 1.0, "torch": torch}])
        monkeypatch.setattr("pplx_bench.convert.measure.run_task", lambda *_: messages)
        limit = memory.Limit("convert", 1.5)
        return memory.measure_limit(limit, "onnx-int8", tmp_path, tmp_path, 1, tmp_path)["passed"]

    assert not passed(1, torch=True)
    assert passed(1, torch=False)
    assert not passed(1.5e9, torch=False)


def test_rooflines_by_hand() -> None:
    spec = ModelSpec.from_config(shape_config("0.6b"))
    rates = {"int8": {"a": 1e12, "b": 2e12}, "bf16": {"a": 1e12}, "fp32": {"a": 5e11}, "bandwidth": {"a": 1e10}}
    found = ceilings.rooflines(rates, spec, parse_rows("1x16,8x512"))
    weights = 28 * 1024 * (2 * 2048 + 2 * 1024 + 3 * 3072)
    assert found["1x16"] == pytest.approx(16 / (weights / 1e10))  # bound by reading the weights
    seconds = 2 * weights * 4096 / 2e12 + 28 * 4 * 2048 * 8 * 512**2 / 1e12
    assert found["8x512"] == pytest.approx(4096 / seconds)


def event(name: str, start: float, duration: float, shapes: list[list[int]] | None = None) -> dict[str, Any]:
    arguments: dict[str, Any] = {"op_name": name, "input_type_shape": [{"float": shape} for shape in shapes or []]}
    return {"cat": "Node", "name": f"{name}_1_kernel_time", "ts": start, "dur": duration, "args": arguments}


def test_self_times_leave_out_what_ran_inside() -> None:
    events = [
        event("MatMul", 0, 10),
        event("Loop", 10, 100),
        event("Slice", 12, 8),
        event("If", 20, 50),
        event("MultiHeadAttention", 25, 40),
        event("RotaryEmbedding", 110, 5),
    ]
    assert [time for _, time in profiling.self_times(reversed(events))] == [10, 42, 8, 10, 40, 5]
    times = profiling.class_times(events)
    assert times == pytest.approx(
        {
            profiling.GEMM: 10e-6,
            profiling.LOOPS: 52e-6,
            profiling.COPIES: 8e-6,
            profiling.ATTENTION: 40e-6,
            profiling.ROTARY: 5e-6,
        }
    )


def test_products_of_equals_are_the_gate() -> None:
    gate, rescale = event("Mul", 0, 1, [[4, 8], [4, 8]]), event("Mul", 0, 1, [[4, 8], [4, 1]])
    assert profiling.operator_class(gate["args"]) == profiling.ACTIVATION
    assert profiling.operator_class(rescale["args"]) == profiling.QUANTIZE
    assert profiling.operator_class(event("Unheard", 0, 1)["args"]) == profiling.OTHER


def test_only_the_last_pass_counts() -> None:
    runs = [{"cat": "Session", "name": "model_run", "ts": ts, "dur": 9} for ts in (0, 10, 20, 30)]
    nodes = [event("MatMul", ts, 5) for ts in (1, 11, 21, 31)]
    assert [found["ts"] for found in profiling.last_pass([*runs, *nodes], 2)] == [21, 31]
    assert len(profiling.last_pass([*runs, *nodes], 1)) == 4


def test_peers_are_a_table_with_ours_first() -> None:
    assert [peer.name for peer in peers.parse_peers("recipe,onnx,native")] == ["native", "onnx", "recipe"]
    with pytest.raises(InputError, match="unknown peer 'tensorflow'"):
        peers.parse_peers("tensorflow")
    absent = peers.Peer(name="x", label="x", module="x", needs=("numpy", "no-such-distribution"))
    assert absent.missing() == ["no-such-distribution"]
    assert peers.PEERS["recipe"].install == "pip install torch 'transformers>=5.2' onnx onnxruntime"


def test_a_plot_shows_the_newest_run(tmp_path: Path) -> None:
    lines = [
        {"benchmark": "speed", "time": time, "row": row, "peer": peer, "tokens_per_second": rate}
        for time, rate in (("2026-01-02", 7.0), ("2026-01-01", 5.0))
        for row in ("1x16", "mixed")
        for peer in ("native", "torch-fp32")
    ]
    results, picture = tmp_path / "speed.jsonl", tmp_path / "speed.svg"
    results.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plot.latest_run(results) == {row: {"native": 7.0, "torch-fp32": 7.0} for row in ("1x16", "mixed")}
    plot.draw(plot.latest_run(results), picture)
    assert picture.read_text().count("<svg") == 1


def test_a_plot_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="no speed results"):
        plot.latest_run(tmp_path / "empty.jsonl")
