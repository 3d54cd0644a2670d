"""Scores of teachers, and their distillation."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pplx_quant.corpus import PackedCorpus
from pplx_quant.errors import ConfigError, DataError
from pplx_quant.losses import score_distillation
from pplx_quant.score import ScoreConfig, score, standardized
from pplx_quant.stages.triplet import TripletConfig, TripletStage, run
from pplx_quant.teacher import Teacher

PROMPTS = ("query: ", "passage: ", "", "")


@pytest.fixture(scope="module")
def negatives_file(text_file, tmp_path_factory):
    packed = PackedCorpus.open(text_file)
    negatives = np.random.default_rng(0).integers(0, len(packed.lengths), (len(packed), 3)).astype(np.int32)
    negatives[::5] = -1
    negatives[1::5, 2] = -1
    path = tmp_path_factory.mktemp("mined") / "negatives.npy"
    np.save(path, negatives)
    return path


@pytest.fixture(scope="module")
def score_config(text_file, negatives_file, teacher_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("scores") / "scores.npy"
    config = ScoreConfig(
        data=text_file,
        out=out,
        teacher=(teacher_folder, teacher_folder),
        negatives=negatives_file,
        prompt=PROMPTS,
        weight=(2.0, 1.0),
        precision="float32",
    )
    score(config)
    return config


def test_scores_are_weighted_means_of_standardized_cosines_with_each_teachers_prompts(score_config):
    packed, negatives = PackedCorpus.open(score_config.data), np.load(score_config.negatives)
    teacher, texts = Teacher(score_config.teacher[0]), [packed.string(n) for n in range(len(packed.lengths))]
    total = np.zeros((len(packed), 4))
    for number, weight in enumerate(score_config.weight):
        queries, passages = (
            teacher(texts, [PROMPTS[2 * number + side]] * len(texts), []).vectors.numpy() for side in (0, 1)
        )
        found = np.full(total.shape, np.nan)
        for row, (query, positive) in enumerate(packed.pairs.tolist()):
            for place, text in enumerate([positive, *negatives[row].tolist()]):
                if text >= 0 and negatives[row].max() >= 0:
                    found[row, place] = queries[query] @ passages[text]
        total += weight * (found - np.nanmean(found)) / np.nanstd(found)
    np.testing.assert_allclose(np.load(score_config.out), total / 3, atol=2e-3)


def test_scoring_again_reads_the_shards_and_other_pairs_are_refused(score_config, monkeypatch):
    before = score_config.out.read_bytes()
    monkeypatch.setattr(Teacher, "__call__", None)  # nothing is encoded again
    score(score_config)
    assert score_config.out.read_bytes() == before
    negatives = np.load(score_config.negatives)
    np.save(score_config.out.with_name("other.npy"), negatives[:, ::-1][:, :2])
    with pytest.raises(ConfigError, match="made with other options"):
        score(replace(score_config, negatives=score_config.out.with_name("other.npy")))


def test_standardized_scores_have_mean_0_and_variance_1():
    found = standardized(np.array([[0.8, np.nan], [0.9, 0.7]], np.float32))
    assert np.nanmean(found) == pytest.approx(0, abs=1e-6)
    assert np.nanstd(found) == pytest.approx(1, rel=1e-5)


def test_the_loss_is_the_divergence_of_each_query_and_has_finite_gradients():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(3, 8, generator=generator, requires_grad=True)
    candidates = torch.randn(3, 4, 8, generator=generator, requires_grad=True)
    scores = torch.tensor([[2.0, 1.0, 0.0, torch.nan], [1.0, torch.nan, torch.nan, torch.nan], [0.5, 0.1, 0.3, -1.0]])
    loss = score_distillation(queries, candidates, scores, temperature=0.1)
    expected = []
    for row, known in ((0, [0, 1, 2]), (2, [0, 1, 2, 3])):  # the second query has nothing to compare
        cosines = [torch.cosine_similarity(queries[row], candidates[row, place], dim=0) / 0.1 for place in known]
        student, teacher = torch.softmax(torch.stack(cosines), 0), torch.softmax(scores[row, known], 0)
        expected.append(sum(p * torch.log(p / q) for p, q in zip(teacher, student, strict=True)))
    torch.testing.assert_close(loss, sum(expected) / 2)
    loss.backward()
    assert queries.grad.isfinite().all()
    assert candidates.grad.isfinite().all()
    assert not queries.grad[1].any()
    assert not score_distillation(queries, candidates, torch.full((3, 4), torch.nan), 0.1)


@pytest.fixture
def triplet(score_config, model_folder, tmp_path):
    return TripletConfig(
        data=score_config.data,
        init=model_folder,
        out=tmp_path / "run",
        negatives=score_config.negatives,
        scores=score_config.out,
        score_weight=1.0,
        score_scale=3.0,
        hard_weight=0.0,
        hard=2,
        batch=16,
        block=8,
        dims=(32, 16),
        steps=25,
        warmup=2,
        log_every=1,
        save_every=100,
        precision="float32",
        embedding_rate=0.01,
        matrix_rate=0.003,
    )


def test_a_student_learns_the_scores(triplet):
    run(triplet)
    losses = [json.loads(line)["loss"] for line in (triplet.out / "log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])


def test_targets_are_the_scores_of_the_drawn_negatives(triplet):
    stage = TripletStage(triplet)
    drawn = stage.sampler.batch(3, 16, 8, 1)
    own = stage.own_negatives(drawn, 3)
    wanted = stage.targets(drawn, own)
    distinct = stage.draw_negatives(drawn, 3)
    for row, pair in enumerate(drawn):
        assert wanted.places[row, 0] == row
        assert wanted.scores[row, 0] == pytest.approx(3 * stage.scores[pair, 0])
        for place, text in enumerate(own[row], start=1):
            if text >= 0:
                assert distinct[wanted.places[row, place] - len(drawn)] == text
                column = stage.negatives[pair].tolist().index(text)
                assert wanted.scores[row, place] == pytest.approx(3 * stage.scores[pair, 1 + column])
            else:
                assert np.isnan(wanted.scores[row, place])


def test_scores_that_do_not_fit_are_refused(triplet, tmp_path):
    with pytest.raises(ConfigError, match="--scores is required"):
        TripletStage(replace(triplet, scores=None))
    np.save(tmp_path / "short.npy", np.zeros((3, 2), np.float32))
    with pytest.raises(DataError, match="expected floats"):
        TripletStage(replace(triplet, scores=tmp_path / "short.npy"))
    with pytest.raises(ConfigError, match="must not both be 0"):
        replace(triplet, score_weight=0.0)
    with pytest.raises(ConfigError, match="--prompt needs two values"):
        ScoreConfig(data=triplet.data, out=tmp_path / "s", teacher=(tmp_path,), prompt=("query: ",))
    with pytest.raises(ConfigError, match="--weight needs"):
        ScoreConfig(data=triplet.data, out=tmp_path / "s", teacher=(tmp_path,), weight=(0.0,))
