"""`pplx-edge bench search`: a small run of it, and that its made-up vectors are what it says."""

import json
from pathlib import Path

import numpy as np
import pytest

from pplx_bench.search.synthetic import CHUNKS_PER_DOCUMENT, Chunks, nearest_rows
from pplx_cli import main


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results = tmp_path / "search.jsonl"
    options = ["--chunks", "1500", "--dim", "256", "--queries", "6", "--peers", "fts5", "--scan", "2"]
    assert (
        main(
            [
                "bench",
                "search",
                "scale",
                *options,
                "--json",
                str(results),
                "--work",
                str(tmp_path / "work"),
                "--plot",
                str(tmp_path),
            ]
        )
        == 0
    )
    assert "recall 1.000" in (tmp_path / "search-scale.svg").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    for what in (
        "pplx-search: dense",
        "pplx-search: hybrid",
        "50.0% of documents",
        "scan of 3,000 rows",
        "fts5: words",
    ):
        assert what in printed
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    recalls = {line["what"]: line["recall"] for line in lines if line.get("recall") is not None}
    assert recalls["dense"] == 1
    assert recalls["dense, 50.0% of documents"] == 1
    assert list((tmp_path / "work").iterdir()) == []


def test_a_peer_that_is_not_installed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "usearch", None)
    options = ["--chunks", "100", "--dim", "128", "--queries", "2", "--peers", "usearch", "--scan", "0"]
    assert main(["bench", "search", "scale", *options, "--work", str(tmp_path)]) == 0
    assert "usearch: ModuleNotFoundError" in capsys.readouterr().out


def test_made_up_vectors_lie_in_clusters():
    chunks = Chunks(4000, 256)
    vectors = np.concatenate(list(chunks.vectors()))
    assert vectors.shape == (4000, 256)
    assert np.array_equal(vectors, np.concatenate(list(Chunks(4000, 256).vectors())))
    documents = [nearest_rows(row, vectors) // CHUNKS_PER_DOCUMENT for row in vectors[::400]]
    assert np.mean([np.bincount(found).max() for found in documents]) > 8
    assert 20 < np.abs(vectors.astype(int)).mean() < 60
