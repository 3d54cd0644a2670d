"""`bench variants`: Pareto fronts and recommendations follow from the JSON Lines alone, and the run resumes."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import tiny_config, write_checkpoint
from command_line import Run, run_fixture  # noqa: F401 (fixture)

from pplx_bench.variants import collect as collecting
from pplx_bench.variants.command import make_report
from pplx_bench.variants.energy import EnergyMeter
from pplx_bench.variants.report import html, markdown
from pplx_bench.variants.summary import Row, changes, front, recommend, rows_of
from pplx_bench.variants.variant import find_variants
from pplx_edge.registry import EXACT_FORMAT
from pplx_edge.spec import ModelSpec

HEADER = {"time": "now", "commit": "abc", "machine": {"cpu": "a CPU", "cores": 2, "memory_gb": 8, "system": "Linux"}}
SECONDS = {"onnx-fp32": 0.02, "onnx-int8": 0.01, "native-int8": 0.004, "onnx-int4": 0.003, "llama.cpp": 0.001}


def lines(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Results as a run writes them, with random figures."""
    for name in SECONDS:
        common = {"benchmark": "variants", "variant": name, "peer": name == "llama.cpp"}
        quality = 0.8 if name == EXACT_FORMAT else 0.8 * rng.uniform(0.97, 1.001)
        yield common | {"stage": "convert", "seconds": 1.0, "bytes": int(rng.integers(1, 99)) * 10**6}
        yield common | {
            "stage": "open",
            "query_seconds": SECONDS[name],
            "rss": int(rng.integers(50, 99)) * 10**6,
            "bidirectional": True,
        }
        speeds = {"1x16": 1.0, "8x512": float(rng.integers(100, 9999)), "8x128": 2.0}
        yield common | {"stage": "speed", "tokens_per_second": speeds, "no_energy": "no counters"}
        scores = [
            {"task": task, "context": context, "precision": precision, "dim": dim, "ndcg": quality - (dim is not None)}
            for task, context, precision, dim in product("ab", ("off", "on"), ("int8", "binary"), (None, 256))
        ]
        yield common | {"stage": "quality", "quality": scores}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "variants.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines(np.random.default_rng(3))))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def flat(path: Path) -> dict[str, dict[str, Any]]:
    """The figures of each variant, read from the file without the module under test."""
    found: dict[str, dict[str, Any]] = {}
    for line in read(path):
        row = found.setdefault(line["variant"], {})
        row |= {key: line[key] for key in ("bytes", "query_seconds", "rss") if key in line}
        if line["stage"] == "speed":
            row["speed"] = line["tokens_per_second"]["8x512"]
        if line["stage"] == "quality":
            plain = [s["ndcg"] for s in line["quality"] if s["dim"] is None and s["precision"] == "int8"]
            row["quality"] = sum(plain) / len(plain)
    return found


def test_fronts_are_those_of_a_comparison_of_all_pairs(file: Path) -> None:
    rows, plain = rows_of(read(file)), flat(file)
    for x, better in (("speed", "high"), ("bytes", "low"), ("rss", "low"), ("query_seconds", "low")):
        sign = 1 if better == "high" else -1
        expected = set(plain)
        for a, b in product(plain, plain):
            gain = sign * (plain[a][x] - plain[b][x]), plain[a]["quality"] - plain[b]["quality"]
            if min(gain) >= 0 and max(gain) > 0:
                expected.discard(b)
        found = front(rows, {x: better, "quality": "high"})  # type: ignore[dict-item]
        assert set(found) == expected
        assert 0 < len(found) <= len(plain)


def test_recommendations_follow_from_the_file(file: Path) -> None:
    plain = flat(file)
    kept = {n: r for n, r in plain.items() if n != "llama.cpp" and r["quality"] >= 0.99 * plain["onnx-fp32"]["quality"]}
    assert 1 < len(kept) < len(plain)
    found = {each.use: each for each in recommend(rows_of(read(file)))}
    assert found["bulk indexing"].variant == max(kept, key=lambda name: kept[name]["speed"])
    assert found["laptop search"].variant == min(kept, key=lambda name: (kept[name]["rss"], name))
    assert found["one query at a time"].variant == min(kept, key=lambda name: kept[name]["query_seconds"])
    assert found["smallest that keeps 99 % of quality"].variant == min(
        kept, key=lambda name: (kept[name]["bytes"], name)
    )
    for each in found.values():
        assert each.variant in each.sentence
        assert f"{len(kept)} variants that keep 99 %" in each.sentence


def test_a_variant_without_the_tasks_has_no_quality_of_another_kind(file: Path) -> None:
    kept = {"benchmark": "variants", "variant": "new", "stage": "fidelity", "fidelity": {"top10_kept": 0.99}}
    assert rows_of([*read(file), kept])[-1].quality is None
    assert rows_of([kept])[-1].quality == 0.99


def test_nothing_is_recommended_without_the_reference(file: Path) -> None:
    rows = [row for row in rows_of(read(file)) if row.variant != EXACT_FORMAT]
    assert recommend(rows) == []


def test_the_page_holds_the_figures_and_nothing_from_elsewhere(file: Path) -> None:
    report = make_report("</script>x", read(file), {"coreml-fp16": "needs macOS"}, ["a", "b"], dict(HEADER), [])
    page = html(report)
    stored = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert stored is not None
    data = json.loads(stored[1])
    assert [row["variant"] for row in data["rows"]] == list(SECONDS)
    assert data["rows"][1]["speed"] == flat(file)["onnx-int8"]["speed"]
    assert data["leftOut"] == {"coreml-fp16": "needs macOS"}
    assert data["noEnergy"] == "no counters"
    assert re.findall(r"(?:src|href)=|https?://(?!www\.w3\.org/2000/svg)|@import", page) == []
    card = markdown(report)
    assert "coreml-fp16: needs macOS" in card
    assert "(peer)" in next(line for line in card.splitlines() if "llama.cpp" in line and line.startswith("|"))


def test_changes_name_what_moved() -> None:
    old, new = Row(variant="a", peer=False, speed=100.0, rss=50), Row(variant="a", peer=False, speed=150.0, rss=50)
    assert changes([old], [new, Row(variant="b", peer=False, speed=1.0)]) == [("a", "speed", 100.0, 150.0)]


def test_energy_is_read_from_the_counters_or_the_reason_is_given(tmp_path: Path) -> None:
    assert "no counters" in EnergyMeter(tmp_path).reason
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir()
    counter.write_text("1000000\n")
    meter = EnergyMeter(tmp_path)
    meter.start()
    counter.write_text("3500000\n")
    assert (meter.reason, meter.stop()) == ("", 2.5)


def test_variants_that_cannot_run_have_a_reason(tiny_dir: Path) -> None:
    spec = ModelSpec.from_directory(tiny_dir)
    variants, left_out = find_variants([], {}, spec, None)
    assert variants[0].name == EXACT_FORMAT
    assert left_out.keys().isdisjoint(variant.name for variant in variants)
    assert all(left_out.values())
    variants, left_out = find_variants(["onnx-int8"], {}, spec, 0.1)
    assert variants == []
    assert "--max-gb" in left_out["onnx-int8"]


def test_a_run_measures_resumes_and_compares(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, out = write_checkpoint(tmp_path / "tiny", tiny_config()), tmp_path / "out"
    command = ["bench", "variants", str(checkpoint), "--formats", "onnx-int8", "--rows", "1x8,2x16", "--budget", "0.1"]
    status, card, err = run(*command, "--out", str(out), "--threads", "1")
    assert status == 0, err
    found = read(out / "variants.jsonl")
    assert [(line["variant"], line["stage"]) for line in found] == [
        (name, stage) for name in (EXACT_FORMAT, "onnx-int8") for stage in ("convert", "open", "speed", "fidelity")
    ]
    by_stage: Mapping[str, Any] = {line["stage"]: line for line in found if line["variant"] == "onnx-int8"}
    assert by_stage["open"]["batch_independent"] is True
    assert by_stage["open"]["bidirectional"] is True
    assert set(by_stage["speed"]["tokens_per_second"]) == {"1x8", "2x16"}
    assert 0.97 < by_stage["fidelity"]["fidelity"]["mean_cosine"] < 1
    assert "onnx-int8" in card
    assert (out / "variants.html").is_file()

    monkeypatch.setattr(collecting, "run_task", None)  # nothing is measured again
    old = tmp_path / "old.jsonl"
    old.write_text("".join(json.dumps(line | {"bytes": 1} if "bytes" in line else line) + "\n" for line in found))
    status, card, err = run(*command, "--out", str(out), "--threads", "1", "--compare", str(old))
    assert status == 0, err
    assert len(read(out / "variants.jsonl")) == len(found)
    assert "onnx-int8, bytes: 1 →" in card
