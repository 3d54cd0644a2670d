"""`bench rough` on a tiny model and a tiny task."""

import json
from pathlib import Path

import pytest
from beir_folders import QUERIES, write_task
from checkpoints import write_checkpoint
from command_line import Run, run_fixture  # noqa: F401 (fixture)

pytest.importorskip("ir_measures", reason="needs pip install 'pplx-edge[quality]'")

from pplx_bench.retrieval.beir import read_task
from pplx_bench.rough.measure import part_of_task


def test_outliers_spoil_int8_vectors_unless_they_are_equalized(run: Run, tmp_path: Path):
    task, out = write_task(tmp_path / "task"), tmp_path / "rows.jsonl"
    model = write_checkpoint(tmp_path / "tiny")
    options = ["--model", model, "--plants", "none,norms", "--formats", "onnx-int8", "--json", out]
    status, printed, _ = run("bench", "rough", task, *options)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(row["plants"], row["format"], row["equalized"]) for row in rows] == [
        (plants, *kind)
        for plants in ("none", "norms")
        for kind in (("float32", False), ("onnx-int8", False), ("onnx-int8", True))
    ]
    assert rows[3]["ndcg"] == pytest.approx(rows[0]["ndcg"])  # the outliers keep the function
    before, after = rows[4:]
    assert after["error"] < before["error"] / 4
    assert status == int(rows[2]["refused"] or after["refused"])
    for row in (before, after):
        assert f"{row['error']:.6f}" in printed


def test_a_part_of_a_task_keeps_all_passages_judged_for_its_queries(tmp_path: Path):
    task = read_task(write_task(tmp_path / "task"))
    part = part_of_task(task, 2, 6)
    assert [query.id for query in part.queries] == list(QUERIES)[:2]
    judged = {passage for query in part.queries for passage in QUERIES[query.id][1]}
    assert judged <= {passage.id for passage in part.corpus}
    assert len(part.corpus) == 6
    assert len(part_of_task(task, 5, 2).corpus) == len({p for _, grades in QUERIES.values() for p in grades})
