"""Figures on a folder in the layout of BEIR, and logs for TensorBoard."""

import gzip
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from training_samples import sample_pairs

from pplx_edge.vectors.codes import int8_codes
from pplx_quant.checkpoint import read_model
from pplx_quant.commands import main
from pplx_quant.errors import ConfigError, DataError
from pplx_quant.loop import train
from pplx_quant.model import encode_means
from pplx_quant.stages.pair import PairConfig, PairStage
from pplx_quant.tokenizer import load_tokenizer
from pplx_quant.validation import BeirFolder, graded_ndcg


def rows(items) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


@pytest.fixture
def beir(tmp_path):
    folder, pairs = tmp_path / "mine", sample_pairs(12)
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        rows({"_id": f"p{n}", "title": f"List {n}", "text": pair["positive"]} for n, pair in enumerate(pairs))
    )
    with gzip.open(folder / "queries.jsonl.gz", "wt") as file:
        file.write(rows({"_id": f"q{n}", "text": pair["query"]} for n, pair in enumerate(pairs)))
    judged = [(f"q{n}", f"p{n}", 2) for n in range(8)] + [("q1", "p5", 1), ("q2", "p3", 0), ("q0", "gone", 1)]
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, line)) for line in judged)]
    (folder / "qrels" / "dev.tsv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def cfg(packed_file, model_folder, tmp_path, beir):
    return PairConfig(
        data=packed_file,
        init=model_folder,
        out=tmp_path / "run",
        beir=(beir,),
        steps=4,
        batch=16,
        block=16,
        dims=(32, 16),
        warmup=1,
        log_every=1,
        precision="float32",
    )


def test_a_folder_is_read_with_titles_grades_and_without_unjudged_queries(beir):
    found = BeirFolder.read(beir)
    assert found.passages[3] == f"List 3 {sample_pairs(12)[3]['positive']}"
    assert found.queries == [pair["query"] for pair in sample_pairs(8)]
    assert found.relevant[:3] == [{0: 2.0}, {1: 2.0, 5: 1.0}, {2: 2.0}]


def test_graded_ndcg_is_the_textbook_formula():
    generator = np.random.default_rng(0)
    for _ in range(50):
        scores = generator.standard_normal(30)
        relevant = {int(n): float(generator.integers(1, 4)) for n in generator.choice(30, 12, replace=False)}
        ranking = sorted(range(30), key=lambda n: -scores[n])[:10]
        gained = sum(relevant.get(n, 0) / math.log2(rank + 2) for rank, n in enumerate(ranking))
        ideal = sum(g / math.log2(rank + 2) for rank, g in enumerate(sorted(relevant.values(), reverse=True)[:10]))
        assert graded_ndcg(scores, relevant) == pytest.approx(gained / ideal)


def test_a_run_reports_the_folder_and_keeps_its_best_checkpoint(cfg, beir):
    train(cfg := replace(cfg, validate_every=2), PairStage(cfg))
    log = [json.loads(line) for line in (cfg.out / "log.jsonl").read_text().splitlines()]
    scores = [line["ndcg_beir_mine"] for line in log if "ndcg_beir_mine" in line]
    assert len(scores) == 2
    model, tokenizer, folder = read_model(cfg.out / "best"), load_tokenizer(cfg.out / "best"), BeirFolder.read(beir)
    queries, passages = (
        int8_codes(encode_means(model, tokenizer, texts, limit)).astype(float)
        for texts, limit in ((folder.queries, cfg.max_query), (folder.passages, cfg.max_positive))
    )
    cosines = queries @ passages.T / np.linalg.norm(passages, axis=1)
    expected = np.mean([graded_ndcg(row, own) for row, own in zip(cosines, folder.relevant, strict=True)])
    assert max(scores) == pytest.approx(expected, abs=1e-3)


def test_the_command_prints_what_a_run_logs(cfg, beir, capsys):
    train(cfg, PairStage(replace(cfg, validate_on=("sample",))))
    log = [json.loads(line) for line in (cfg.out / "log.jsonl").read_text().splitlines()]
    model = str(cfg.out / "checkpoint")
    options = ["--data", str(cfg.data), "--model", model, "--beir", str(beir), "--validate-on", "sample"]
    assert main(["validate", *options, "--precision", "float32"]) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("ndcg_beir_mine", "ndcg_sample", "binary_sample"):
        assert found[name] == pytest.approx(log[-1][name], abs=1e-3)
    assert found["mean"] == pytest.approx((found["ndcg_beir_mine"] + found["ndcg_sample"]) / 2, abs=1e-3)


def test_a_command_that_would_score_nothing_is_refused(cfg, capsys):
    assert main(["validate", "--model", str(cfg.init)]) == 2
    assert main(["validate", "--model", str(cfg.init), "--data", str(cfg.data)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: give --validate-on or --beir",
        "error: --data and --validate-on must be given together",
    ]


def test_a_folder_that_cannot_be_read_is_refused_before_training(cfg, tmp_path, beir):
    with pytest.raises(DataError, match="not a folder in the layout of BEIR"):
        PairStage(replace(cfg, beir=(tmp_path,)))
    (beir / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n")
    with pytest.raises(DataError, match="no query has a relevant passage"):
        PairStage(cfg)


def test_the_log_is_written_for_tensorboard(cfg, beir):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    cfg = replace(cfg, tensorboard=True)
    train(cfg, PairStage(cfg))
    events = accumulator.EventAccumulator(str(cfg.out / "tensorboard"))
    events.Reload()
    log = [json.loads(line) for line in (cfg.out / "log.jsonl").read_text().splitlines()]
    expected = [(line["step"], line["loss"]) for line in log if "loss" in line]
    found = [(item.step, pytest.approx(item.value, abs=1e-4)) for item in events.Scalars("loss")]
    assert found == expected


def test_tensorboard_that_is_not_installed_is_asked_for(cfg, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    cfg = replace(cfg, tensorboard=True)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        train(cfg, PairStage(cfg))
