"""The stage on a tiny model: it learns, resumes exactly, and stops with what is good on disk."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pplx_quant import checkpoint as checkpoints
from pplx_quant import training
from pplx_quant.errors import ConfigError, DivergedError
from pplx_quant.model import bag_means, encoder_means
from pplx_quant.options import parse_config
from pplx_quant.stages import pair
from pplx_quant.stages.pair import PairConfig
from safetensors.torch import load_file

from pplx_edge.errors import CheckpointError, StorageError


@pytest.fixture
def cfg(packed_folder, tokenizer_folder, tmp_path) -> PairConfig:
    sizes = {"layers": 2, "hidden_size": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "intermediate_size": 48}
    return PairConfig(
        data=packed_folder,
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
        bf16=False,
        validate_on=("sample",),
        validate_every=8,
    )


def read_log(cfg: PairConfig) -> list[dict]:
    rows = [json.loads(line) for line in (cfg.out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "tokens_per_second")} for row in rows]


def weights(cfg: PairConfig) -> dict[str, torch.Tensor]:
    return load_file(cfg.out / "checkpoint" / checkpoints.WEIGHTS)


@pytest.mark.parametrize("blocks", [True, False])
def test_an_interrupted_run_equals_an_uninterrupted_one(cfg, tmp_path, monkeypatch, blocks):
    whole, cut = (replace(cfg, blocks=blocks, out=tmp_path / name) for name in ("whole", "cut"))
    pair.main(whole)
    with monkeypatch.context() as patch:
        patch.setattr(pair, "pair_loss", killed_at(5, pair.pair_loss))
        with pytest.raises(KeyboardInterrupt):
            pair.main(cut)
    pair.main(cut)
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
    longer = replace(cfg, steps=60, embedding_rate=0.03, validate_every=60)
    pair.main(longer)
    losses = [row["loss"] for row in read_log(longer) if "loss" in row]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert read_log(longer)[-1]["ndcg_sample"] > 0.5


def test_a_new_model_is_a_bag_of_words(cfg):
    model = pair.start_model(cfg, pair.PackedPairs.open(cfg.data))
    rows = [np.array([5, 9, 9, 40]), np.array([7]), np.arange(2, 60)]
    torch.testing.assert_close(encoder_means(model, rows, 64), bag_means(model, rows))


def test_means_do_not_depend_on_the_grouping_of_rows(cfg):
    pair.main(cfg)
    model = checkpoints.read_model(cfg.out / "checkpoint")
    generator = np.random.default_rng(0)
    rows = [generator.integers(2, 300, length) for length in (3, 50, 1, 20, 20, 7)]
    alone = torch.cat([encoder_means(model, [row], 64) for row in rows])
    for max_tokens in (1, 64, 1000):
        torch.testing.assert_close(encoder_means(model, rows, max_tokens), alone, atol=1e-5, rtol=1e-5)


def test_nan_loss_stops_with_the_step_and_keeps_the_checkpoint(cfg, monkeypatch):
    pair.main(replace(cfg, steps=3))
    kept = weights(cfg)
    (cfg.out / "options.json").unlink()
    real = pair.pair_loss
    monkeypatch.setattr(pair, "pair_loss", lambda *args: (real(*args)[0] * float("nan"), 1))
    with pytest.raises(DivergedError, match="step 3: loss is nan; last good checkpoint"):
        pair.main(cfg)
    assert all(torch.equal(weight, kept[name]) for name, weight in weights(cfg).items())


def test_other_options_in_the_same_folder_are_refused(cfg):
    pair.main(replace(cfg, steps=1))
    with pytest.raises(ConfigError, match=r"holds a run with other options \(temperature=0.05\)"):
        pair.main(replace(cfg, steps=1, temperature=0.1))


def test_a_full_disk_leaves_the_last_checkpoint(cfg, monkeypatch):
    pair.main(replace(cfg, steps=1))
    kept = weights(cfg)
    model = checkpoints.read_model(cfg.out / "checkpoint")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(StorageError, match=r"checkpoint not written \(No space left on device\); the last one is kept"):
        checkpoints.write_checkpoint(cfg.out / "checkpoint", model, cfg.tokenizer)
    assert all(torch.equal(weight, kept[name]) for name, weight in weights(cfg).items())


def test_a_checkpoint_is_found_after_a_crash_between_two_renames(cfg):
    pair.main(replace(cfg, steps=1))
    folder = cfg.out / "checkpoint"
    folder.rename(folder.with_name("checkpoint.old"))
    assert checkpoints.find_checkpoint(folder) == folder.with_name("checkpoint.old")
    assert checkpoints.find_checkpoint(cfg.out / "nothing") is None


def test_damaged_training_state_is_refused(cfg):
    pair.main(replace(cfg, steps=1))
    path = cfg.out / "checkpoint" / checkpoints.STATE_TENSORS
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.read_state(cfg.out / "checkpoint")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["--temperature", "0"], "--temperature 0.0 must be above 0"),
        (["--dims", "500"], r"--dims \(500,\) must be in 1…384"),
        (["--init", "x"], "one of them"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    base = ["--data", "d", "--out", "o", "--tokenizer", "t"]
    with pytest.raises(ConfigError, match=message):
        parse_config(PairConfig, base + options, "")


def test_options_have_the_types_of_their_fields():
    cfg = parse_config(
        PairConfig,
        ["--data", "d", "--out", "o", "--init", "i", "--dims", "64", "32", "--no-blocks", "--boost", "a=1", "b*=2"],
        "",
    )
    assert (cfg.data, cfg.init, cfg.dims, cfg.blocks) == (Path("d"), Path("i"), (64, 32), False)
    assert cfg.boost == ("a=1", "b*=2")


def test_learning_rate_rises_holds_and_falls():
    factor = partial(training.learning_rate_factor, n_steps=100, warmup=9, decay_share=0.2)
    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == factor(80) == 1
    assert factor(90) == pytest.approx(0.5)
    assert factor(99) == pytest.approx(0.05)


def test_missing_packed_folder_is_one_line_and_exit_2(tmp_path, capsys):
    options = ["--data", str(tmp_path / "none"), "--out", str(tmp_path / "o"), "--tokenizer", "t"]
    assert pair.run(options) == 2
    assert capsys.readouterr().err.count("\n") == 1
