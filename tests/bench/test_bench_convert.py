"""`pplx-edge bench convert` on the tiny shape: what it prints, writes and says when a format fails."""

import json
from pathlib import Path

import pytest

from pplx_bench.child import ChildFailed
from pplx_bench.convert import measure
from pplx_cli import main


def test_every_format_asked_for_is_converted_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shape", "tiny", "--formats", "onnx-fp32,onnx-int8", "--work", tmp_path, "--keep", tmp_path / "kept"]
    status = main(["bench", "convert", *map(str, options), "--json", str(tmp_path / "out.jsonl")])
    out = capsys.readouterr().out
    assert status == 0
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [result["format"] for result in results] == ["onnx-fp32", "onnx-int8"]
    for result in results:
        manifest = json.loads((tmp_path / "kept" / result["format"] / "pplx-edge.json").read_text())
        assert result["parity"] == manifest["parity"]
        assert result["bytes"] == sum(entry["bytes"] for entry in manifest["files"].values())
        assert 50_000_000 < result["rss"] < 2_000_000_000
        assert f"{result['parity']['min_cosine']:.5f}" in out
    assert results[0]["bytes"] > results[1]["bytes"]


def test_a_peak_over_the_limit_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shape", "tiny", "--formats", "onnx-int8", "--work", str(tmp_path), "--limit-gb", "0.001"]
    assert main(["bench", "convert", *options]) == 1
    assert " !" in capsys.readouterr().out
    assert not (tmp_path / "convert").exists()


def test_a_failed_conversion_is_told_and_the_others_are_made(tmp_path: Path, capsys, monkeypatch) -> None:
    def half(task: str, request: dict, *_: object):
        if request["format"] == "onnx-fp32":
            raise ChildFailed("out of luck")
        parity = dict.fromkeys(("min_cosine", "mean_cosine", "moved_share", "flipped_share"), 0.5) | {"largest_step": 3}
        yield {"kind": "converted", "seconds": 1.0, "rss": 1e8, "bytes": 1000, "parity": parity}

    monkeypatch.setattr(measure, "run_task", half)
    options = ["--shape", "tiny", "--formats", "onnx-fp32,onnx-int8", "--work", str(tmp_path)]
    assert main(["bench", "convert", *options]) == 1
    out = capsys.readouterr().out
    assert "onnx-fp32: out of luck" in out
    assert "0.50000" in out


def test_an_unknown_format_names_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "convert", "--formats", "onnx-int3"])
    assert "'onnx-int3': choose among onnx-int8" in capsys.readouterr().err
