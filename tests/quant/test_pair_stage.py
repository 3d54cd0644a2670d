"""The stage on a tiny model: it learns, resumes exactly, and stops with what is good on disk."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pplx_edge.errors import CheckpointError, StorageError
from pplx_edge.types import TokenRow
from pplx_quant import checkpoint as checkpoints
from pplx_quant import optimizers
from pplx_quant.commands import main
from pplx_quant.errors import ConfigError, DivergedError
from pplx_quant.loop import train
from pplx_quant.model import bag_means, encoder_means, plan_calls, whole_rows
from pplx_quant.options import parse_config
from pplx_quant.stages.pair import PairConfig, PairStage
from pplx_quant.validation import ndcg


@pytest.fixture
def cfg(packed_file, tokenizer_folder, tmp_path) -> PairConfig:
    sizes = {"layers": 2, "hidden_size": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "intermediate_size": 48}
    return PairConfig(
        data=packed_file,
        tokenizer=tokenizer_folder,
        out=tmp_path / "run",
        **sizes,
        steps=8,
        batch=16,
        block=16,
        dims=(32, 16),
        max_tokens=128,
        warmup=2,
        save_every=3,
        log_every=1,
        precision="float32",
        validate_on=("sample",),
    )


def train_pairs(cfg: PairConfig) -> None:
    train(cfg, PairStage(cfg))


def read_log(cfg: PairConfig) -> list[dict]:
    rows = [json.loads(line) for line in (cfg.out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "tokens_per_second")} for row in rows]


def weights(cfg: PairConfig) -> dict[str, torch.Tensor]:
    return load_file(cfg.out / "checkpoint" / checkpoints.WEIGHTS)


@pytest.mark.parametrize("blocks", [True, False])
def test_an_interrupted_run_equals_an_uninterrupted_one(cfg, tmp_path, monkeypatch, blocks):
    whole, cut = (replace(cfg, blocks=blocks, out=tmp_path / name) for name in ("whole", "cut"))
    train_pairs(whole)
    with monkeypatch.context() as patch:
        patch.setattr(PairStage, "accumulate", killed_at(5, PairStage.accumulate))
        with pytest.raises(KeyboardInterrupt):
            train_pairs(cut)
    train_pairs(cut)
    assert read_log(cut) == read_log(whole)
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(cut)[name]), name


def killed_at(step, function):
    calls = iter(range(100))

    def call(*args):
        if next(calls) == step:
            raise KeyboardInterrupt
        return function(*args)

    return call


def test_training_finds_held_out_pairs_again(cfg):
    longer = replace(cfg, steps=60, embedding_rate=0.03, matrix_rate=0.003)
    train_pairs(longer)
    losses = [row["loss"] for row in read_log(longer) if "loss" in row]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert read_log(longer)[-1]["ndcg_sample"] > 0.5
    assert 0.3 < read_log(longer)[-1]["binary_sample"] <= 1


def test_ndcg_is_that_of_a_sorted_list():
    generator = np.random.default_rng(4)
    queries, docs, own = generator.normal(size=(20, 8)), generator.normal(size=(30, 8)), generator.integers(0, 30, 20)
    places = [sorted(range(30), key=lambda d, q=q: -(queries[q] @ docs[d])).index(own[q]) for q in range(20)]
    assert ndcg(queries, docs, own) == pytest.approx(np.mean([1 / np.log2(p + 2) if p < 10 else 0 for p in places]))
    assert ndcg(np.ones((1, 8)), np.ones((3, 8)), np.array([1])) == pytest.approx(1 / np.log2(3))  # a tie of three


def test_a_new_model_is_a_bag_of_words(cfg):
    model = PairStage(cfg).start_model()
    rows = whole_rows([np.array([5, 9, 9, 40]), np.array([7]), np.arange(2, 60)])
    torch.testing.assert_close(encoder_means(model, rows), bag_means(model, rows))


def test_words_of_a_new_model_point_where_the_teacher_points(cfg, taught_file):
    stage = PairStage(replace(cfg, data=taught_file, teacher_weight=1.0))
    words, vectors = stage.packed.word_vectors()
    assert len(words) > 10
    table = stage.start_model().embed_tokens.weight.detach().numpy()[words, : vectors.shape[1]]
    cosines = (table * vectors).sum(axis=1) / np.linalg.norm(table, axis=1)
    assert cosines.min() > 0.999


def test_spans_of_rows_are_the_means_of_their_states(model_folder):
    model = checkpoints.read_model(model_folder)
    generator = np.random.default_rng(0)
    rows = [
        TokenRow(generator.integers(2, 300, 9), ((0, 4), (5, 9), (0, 9))),
        TokenRow(generator.integers(2, 300, 3), ((1, 1), (2, 3))),
    ]
    found = encoder_means(model, rows)
    states = [model(torch.from_numpy(row.ids)[None])[0] for row in rows]
    expected = [states[0][:4].mean(0), states[0][5:].mean(0), states[0].mean(0), torch.zeros(32), states[1][2]]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_means_do_not_depend_on_their_neighbours(model_folder):
    model = checkpoints.read_model(model_folder)
    generator = np.random.default_rng(0)
    rows = whole_rows([generator.integers(2, 300, length) for length in (3, 50, 1, 20, 20, 7)])
    alone = torch.cat([encoder_means(model, [row]) for row in rows])
    torch.testing.assert_close(encoder_means(model, rows), alone, atol=1e-5, rtol=1e-5)
    for max_tokens in (1, 64, 1000):
        calls = plan_calls(rows, max_tokens)
        assert sorted(row for call in calls for row in call) == list(range(6))
        assert all(len(call) == 1 or len(call) * max(len(rows[row]) for row in call) <= max_tokens for call in calls)


def test_nan_loss_stops_with_the_step_and_keeps_the_checkpoint(cfg, monkeypatch):
    train_pairs(replace(cfg, steps=3))
    kept = weights(cfg)
    (cfg.out / "options.json").unlink()
    real = PairStage.loss
    monkeypatch.setattr(PairStage, "loss", lambda *args: real(*args) * float("nan"))
    with pytest.raises(DivergedError, match="step 3: loss is nan; last good checkpoint"):
        train_pairs(cfg)
    assert all(torch.equal(weight, kept[name]) for name, weight in weights(cfg).items())


def test_a_run_stops_after_its_minutes_and_goes_on(cfg, tmp_path, capsys):
    whole, sliced = (replace(cfg, out=tmp_path / name) for name in ("whole", "sliced"))
    train_pairs(whole)
    slices = 0
    while slices == 0 or json.loads((sliced.out / "checkpoint" / checkpoints.STATE_VALUES).read_text())["step"] < 8:
        train_pairs(replace(sliced, minutes=1e-6))
        slices += 1
    assert slices == 8
    assert "stopped at step 1 of 8; repeat the command to continue" in capsys.readouterr().err
    assert all(torch.equal(weight, weights(sliced)[name]) for name, weight in weights(whole).items())


def test_a_run_of_another_stage_is_not_gone_on_with(cfg):
    train_pairs(replace(cfg, steps=1))
    state = cfg.out / "checkpoint" / checkpoints.STATE_VALUES
    state.write_text(json.dumps({"step": 1, "stage": "diffuse"}))
    with pytest.raises(ConfigError, match="contains a checkpoint of stage diffuse"):
        train_pairs(replace(cfg, steps=1))


def test_blocks_are_scaled_once_at_the_start(cfg, model_folder):
    base = checkpoints.read_model(model_folder).state_dict()
    stage = PairStage(replace(cfg, tokenizer=None, init=model_folder, block_scale=0.25))
    for name, weight in stage.start_model().state_dict().items():
        scale = 0.25 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
        torch.testing.assert_close(weight, scale * base[name])


def test_matryoshka_dims_over_the_models_are_refused(cfg):
    with pytest.raises(ConfigError, match=r"must be in 1…32"):
        train_pairs(replace(cfg, dims=(64,)))


@pytest.mark.parametrize(("option", "packed"), [("max_query", 64), ("max_positive", 160)])
def test_limits_above_those_of_the_packed_file_are_refused(cfg, option, packed):
    PairStage(replace(cfg, **{option: packed}))
    with pytest.raises(ConfigError, match=f"no more than {packed} tokens of a text; lower it, or pack again with"):
        PairStage(replace(cfg, **{option: packed + 1}))


def test_other_options_in_the_same_folder_are_refused(cfg):
    train_pairs(replace(cfg, steps=1))
    with pytest.raises(ConfigError, match=r"contains a run with other options \(temperature=0.05\)"):
        train_pairs(replace(cfg, steps=1, temperature=0.1))


def test_a_full_disk_leaves_the_last_checkpoint(cfg, monkeypatch):
    train_pairs(replace(cfg, steps=1))
    kept = weights(cfg)
    model = checkpoints.read_model(cfg.out / "checkpoint")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(StorageError, match=r"checkpoint not written \(No space left on device\); the last one is kept"):
        checkpoints.write_checkpoint(cfg.out / "checkpoint", model, cfg.tokenizer)
    assert all(torch.equal(weight, kept[name]) for name, weight in weights(cfg).items())


def test_a_checkpoint_is_found_after_a_crash_between_two_renames(cfg):
    train_pairs(replace(cfg, steps=1))
    folder = cfg.out / "checkpoint"
    retired = folder.with_name(".checkpoint.old-1-0")  # the name that `pplx_edge.files` gives it
    folder.rename(retired)
    assert checkpoints.find_checkpoint(folder) == retired
    assert checkpoints.find_checkpoint(cfg.out / "nothing") is None


def test_damaged_training_state_is_refused(cfg):
    train_pairs(replace(cfg, steps=1))
    path = cfg.out / "checkpoint" / checkpoints.STATE_TENSORS
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.read_state(cfg.out / "checkpoint")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["--temperature", "0"], "--temperature 0.0 must be above 0"),
        (["--dims", "0"], "--dims 0 must be at least 1"),
        (["--optimizer", "sgd"], "--optimizer sgd must be one of"),
        (["--init", "x"], "give either"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    base = ["--data", "d", "--out", "o", "--tokenizer", "t"]
    with pytest.raises(ConfigError, match=message):
        parse_config(PairConfig, base + options)


def test_options_have_the_types_of_their_fields():
    cfg = parse_config(
        PairConfig,
        ["--data", "d", "--out", "o", "--init", "i", "--dims", "64", "32", "--no-blocks", "--boost", "a=1", "b*=2"],
    )
    assert (cfg.data, cfg.init, cfg.dims, cfg.blocks) == (Path("d"), Path("i"), (64, 32), False)
    assert cfg.boost == ("a=1", "b*=2")


def test_learning_rate_rises_holds_and_falls():
    factor = partial(optimizers.learning_rate_factor, n_steps=100, warmup=9, decay_share=0.2)
    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == factor(80) == 1
    assert factor(90) == pytest.approx(0.5)
    assert factor(99) == pytest.approx(0.05)


def test_missing_packed_file_is_one_line_and_exit_2(tmp_path, capsys):
    options = ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "o"), "--tokenizer", "t"]
    assert main(["pair", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
