"""The other stages on a tiny model, gradients call by call, and two processes that train as one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pplx_quant import checkpoint as checkpoints
from pplx_quant.ablation import AblationConfig, ablate, causal_states
from pplx_quant.commands import main
from pplx_quant.corpus import PackedCorpus
from pplx_quant.distributed import World
from pplx_quant.errors import ConfigError, DataError
from pplx_quant.gradient_cache import backward
from pplx_quant.loop import train
from pplx_quant.losses import info_nce
from pplx_quant.model import encoder_means, whole_rows
from pplx_quant.pack import PackConfig, pack
from pplx_quant.stages.context import ContextConfig, ContextStage, document_row
from pplx_quant.stages.diffuse import DiffuseConfig, DiffuseStage, add_noise, stratified_noise
from pplx_quant.stages.pair import PairConfig, PairStage
from pplx_quant.stages.triplet import TripletConfig, TripletStage

QUICK = {"steps": 6, "warmup": 2, "save_every": 4, "log_every": 1, "precision": "float32", "call_tokens": 256}
CONTRAST = {"block": 8, "dims": (32, 16)}


@pytest.fixture
def diffuse(packed_file, model_folder, tmp_path) -> tuple:
    cfg = DiffuseConfig(data=packed_file, init=model_folder, out=tmp_path / "diffuse", batch=8, length=24, **QUICK)
    return cfg, DiffuseStage


@pytest.fixture
def pair(taught_file, model_folder, tmp_path) -> tuple:
    out = tmp_path / "pair"
    cfg = PairConfig(data=taught_file, init=model_folder, out=out, batch=16, teacher_weight=2.0, **QUICK, **CONTRAST)
    return cfg, PairStage


@pytest.fixture
def context(taught_file, model_folder, tmp_path) -> tuple:
    out, sizes = tmp_path / "context", {"batch": 3, "plain": 8, "max_document": 300, "teacher_weight": 2.0}
    return ContextConfig(data=taught_file, init=model_folder, out=out, **sizes, **QUICK, **CONTRAST), ContextStage


@pytest.fixture
def triplet(taught_file, model_folder, tmp_path) -> tuple:
    packed = PackedCorpus.open(taught_file)
    negatives = np.random.default_rng(0).integers(0, len(packed.lengths), (len(packed), 3)).astype(np.int32)
    negatives[::5] = -1
    np.save(tmp_path / "negatives.npy", negatives)
    out, mined = tmp_path / "triplet", {"negatives": tmp_path / "negatives.npy", "hard": 2, "batch": 16}
    return TripletConfig(data=taught_file, init=model_folder, out=out, **mined, **QUICK, **CONTRAST), TripletStage


STAGES = ["diffuse", "pair", "context", "triplet"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / checkpoints.WEIGHTS)


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("name", STAGES)
def test_an_interrupted_stage_ends_with_the_weights_of_an_uninterrupted_one(name, request, tmp_path, monkeypatch):
    cfg, stage = request.getfixturevalue(name)
    options = {"tied_head": False} if name == "diffuse" else {}
    whole, cut = (replace(cfg, out=tmp_path / kind, **options) for kind in ("whole", "cut"))
    train(whole, stage(whole))
    with monkeypatch.context() as patch:
        real, calls = stage.accumulate, iter(range(100))

        def killed(*args):
            if next(calls) == 5:
                raise KeyboardInterrupt
            return real(*args)

        patch.setattr(stage, "accumulate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(cut, stage(cut))
    train(cut, stage(cut))
    assert losses(cut.out) == losses(whole.out)
    for key, weight in weights(whole.out).items():
        assert torch.equal(weight, weights(cut.out)[key]), key


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lowers_its_loss(name, request):
    cfg, stage = request.getfixturevalue(name)
    longer = replace(cfg, steps=40, embedding_rate=0.01, matrix_rate=0.003, save_every=100)
    train(longer, stage(longer))
    found = losses(longer.out)
    assert np.mean(found[-8:]) < 0.92 * np.mean(found[:8])


@pytest.mark.parametrize(("name", "extra"), [*((name, []) for name in STAGES), ("pair", ["--grad-cache"])])
def test_two_processes_train_as_one(name, extra, request, tmp_path):
    cfg, _ = request.getfixturevalue(name)
    options = ["--data", cfg.data, "--init", cfg.init, "--steps", 4, "--warmup", 2, "--log-every", 1]
    options += ["--precision", "float32"]
    options += ["--call-tokens", 128, "--batch", cfg.batch, "--threads", 1, *extra]
    if name == "triplet":
        options += ["--negatives", cfg.negatives]
    options += ["--length", cfg.length] if name == "diffuse" else ["--block", 8, "--dims", 32, 16]
    module = ["pplx_quant", name, *map(str, options), "--out"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command, folder in (([sys.executable, "-m"], "one"), (launch, "two")):
        done = subprocess.run([*command, *module, str(tmp_path / folder)], env=environment, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=2e-4)
    for key, weight in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[key], weight, atol=2e-4, rtol=2e-3)


def test_cached_gradients_are_the_direct_ones(model_folder):
    generator = np.random.default_rng(0)
    rows = whole_rows([generator.integers(2, 300, int(length)) for length in generator.integers(1, 30, 24)])
    gradients, values = [], []
    for cached, call_tokens in ((False, 10_000), (False, 64), (True, 64), (True, 10_000)):
        model = checkpoints.read_model(model_folder)
        values.append(
            backward(
                rows,
                lambda means: info_nce(means[:12], means[12:], 0.1),
                partial(encoder_means, model),
                lambda: torch.autocast("cpu", enabled=False),
                World(),
                call_tokens,
                cached,
            )
        )
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert values == pytest.approx([values[0]] * 4, rel=1e-5)
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-5, rtol=1e-3)


def test_recomputed_blocks_have_the_same_gradients(pair, tmp_path):
    cfg, stage = pair
    for recompute in (False, True):
        run = replace(cfg, recompute=recompute, out=tmp_path / str(recompute))
        train(run, stage(run))
    for key, weight in weights(tmp_path / "False").items():
        torch.testing.assert_close(weights(tmp_path / "True")[key], weight, atol=1e-5, rtol=1e-4)


def test_noise_masks_each_sequence_with_its_own_probability():
    texts = [np.arange(1, length, dtype=np.uint16) for length in (400, 300, 2)]
    draws = np.random.default_rng(1).random((3, 512), np.float32)
    batch = add_noise(texts, 999, np.array([0.3, 0.8, 0.5], np.float32), draws)
    for row, text in enumerate(texts):
        hidden = batch.places[batch.rows == row].numpy()
        assert 0 not in hidden
        assert (batch.ids[row, hidden] == 999).all()
        kept = np.setdiff1d(np.arange(len(text)), hidden)
        assert (batch.ids[row, kept].numpy() == text[kept]).all()
        assert (batch.targets[batch.rows == row].numpy() == text[hidden]).all()
    shares = [(batch.rows == row).float().mean() * len(batch.rows) / len(texts[row]) for row in (0, 1)]
    noise = [batch.noise[batch.rows == row][0] for row in (0, 1)]
    assert [float(share) for share in shares] == pytest.approx([float(n) for n in noise], abs=0.08)


def test_noise_is_stratified_over_the_batch():
    noise = stratified_noise(64, np.random.default_rng(2))
    assert np.array_equal(np.sort((noise - 1e-3) / (1 - 1e-3) * 64).astype(int), np.arange(64))
    assert (np.diff(noise) < 0).any()
    assert noise.min() >= 1e-3
    assert noise.max() <= 1


def test_the_noise_of_a_step_does_not_depend_on_its_calls(diffuse):
    cfg, stage = diffuse
    found = []
    for call_tokens in (24, 10_000):
        one = stage(replace(cfg, call_tokens=call_tokens))
        found.append(one.accumulate(one.start_model(), 0, World()).loss)
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_mask_token_that_is_not_there_is_refused(diffuse):
    cfg, stage = diffuse
    with pytest.raises(ConfigError, match=r"--mask-token '\[M\]' is not in the tokenizer"):
        stage(replace(cfg, mask_token="[M]"))


def test_document_rows_are_those_of_the_runtime(tokenizer_folder, model_folder):
    from pplx_edge.spec import ModelSpec
    from pplx_edge.text.tokenization import Tokenizer

    tokenizer = Tokenizer.open(tokenizer_folder, ModelSpec.from_directory(model_folder))
    chunks = ["which rivers are number 7?", "x", "Of all the sauces in the long list"]
    expected = tokenizer.document_rows([chunks])[0]
    found = document_row([row.ids for row in tokenizer.text_rows(chunks)], tokenizer.sep_id)
    assert found.ids.tolist() == expected.ids.tolist()
    assert found.bounds == (*expected.bounds, (0, len(expected.ids)))


def test_plain_pairs_are_documents_of_one_chunk_and_alone_have_a_teacher(context):
    cfg, make = context
    stage = make(cfg)
    drawn = stage.draw(0)
    rows, batch = stage.rows(drawn, separator=0)
    assert len(drawn.chunks) == cfg.batch + cfg.plain
    assert [len(chunks) for chunks in drawn.chunks[cfg.batch :]] == [1] * cfg.plain
    numbers = stage.teacher_texts(drawn)
    n_means = sum(len(row.bounds) for row in rows)
    assert len(numbers) == n_means
    in_context = len(drawn.queries) + sum(len(chunks) + 1 for chunks in drawn.chunks[: cfg.batch])
    questions = len(drawn.queries) - cfg.plain
    assert (numbers[:questions] < 0).all()
    assert (numbers[len(drawn.queries) : in_context] < 0).all()
    assert (numbers[in_context::2] == [chunks[0] for chunks in drawn.chunks[cfg.batch :]]).all()
    assert batch.chunk_keys[batch.gold[-1]] == drawn.chunks[-1][0]


def test_context_trains_when_every_text_is_taught(context):
    cfg, make = context
    stage = make(cfg)
    stage.packed.arrays["taught"][:] = np.arange(len(stage.packed.lengths)) % len(stage.packed.arrays["teacher"])
    drawn = stage.draw(0)
    numbers = stage.teacher_texts(drawn)
    assert len(stage.packed.teacher_vectors(numbers)[1]) == 2 * cfg.plain
    assert np.isfinite(stage.accumulate(stage.start_model(), 0, World()).loss)


def test_negatives_of_another_packed_file_are_refused(triplet, tmp_path):
    cfg, stage = triplet
    np.save(tmp_path / "short.npy", np.zeros((3, 2), np.int32))
    with pytest.raises(DataError, match=r"int32 \(3, 2\), expected integers"):
        stage(replace(cfg, negatives=tmp_path / "short.npy"))
    with pytest.raises(DataError, match="not an array of negatives"):
        stage(replace(cfg, negatives=tmp_path / "none.npy"))


def test_drawn_negatives_are_mined_ones_and_differ_by_step(triplet):
    cfg, make = triplet
    stage = make(cfg)
    rows = stage.sampler.batch(0, 16, 8, 1)
    assert (stage.negatives[rows] >= 0).any(axis=1).all()
    drawn = [stage.draw_negatives(rows, step) for step in (0, 0, 1)]
    assert set(drawn[0]) <= set(stage.negatives[rows].ravel())
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()
    assert (drawn[0] >= 0).all()


def test_a_teacher_that_is_not_there_is_asked_for(pair, packed_file):
    cfg, stage = pair
    with pytest.raises(ConfigError, match="contains no teacher vectors"):
        stage(replace(cfg, data=packed_file))


def test_fake_quantization_is_switched_on_in_any_stage(pair, tmp_path):
    cfg, stage = pair
    for name, options in (("plain", {}), ("quantized", {"weights": "int8", "table": "int8", "activations": True})):
        run = replace(cfg, out=tmp_path / name, **options)
        train(run, stage(run))
    assert weights(tmp_path / "plain").keys() == weights(tmp_path / "quantized").keys()
    assert losses(tmp_path / "plain") != losses(tmp_path / "quantized")
    np.testing.assert_allclose(losses(tmp_path / "plain"), losses(tmp_path / "quantized"), rtol=0.05)
    with pytest.raises(ConfigError, match="'int3' is not one of"):
        replace(cfg, weights="int3")


def test_pairs_are_mined_among_their_groups(taught_file, model_folder, tmp_path, capsys):
    options = ["--data", str(taught_file), "--model", str(model_folder), "--out", str(tmp_path / "mined"), "--n", "3"]
    assert main(["mine", *options, "--group", "sample", "--cap", "sample=40", "--margin", "1.0"]) == 0
    packed, negatives = PackedCorpus.open(taught_file), np.load(tmp_path / "mined" / "negatives.npy")
    mined = np.flatnonzero((negatives >= 0).any(axis=1))
    assert 0 < len(mined) <= 40
    assert set(packed.group[mined]) == {packed.groups.index("sample")}
    assert not packed.held_out[mined].any()
    passages = set(packed.pairs[packed.group == packed.groups.index("sample"), 1].tolist())
    for row in mined:
        found = negatives[row][negatives[row] >= 0].tolist()
        assert set(found) <= passages - {int(packed.pairs[row, 1])}
        assert len(set(found)) == len(found)
    assert main(["mine", *options, "--group", "nothing"]) == 2
    assert "selects no pair; groups are" in capsys.readouterr().err


def test_the_ablation_has_a_row_for_each_cell_and_sees_no_later_token(
    packed_file, tokenizer_folder, model_folder, tmp_path
):
    sizes = {"layers": 1, "hidden_size": 128, "heads": 2, "pretrain_steps": 2, "pair_steps": 2, "length": 24}
    config = AblationConfig(
        data=packed_file, tokenizer=tokenizer_folder, out=tmp_path, validate_on=("sample",), pair_batch=8, **sizes
    )
    rows = ablate(config)
    assert [(row["pretraining"], row["pooling"]) for row in rows] == [
        (pretraining, pooling) for pretraining in ("causal", "diffusion") for pooling in ("last", "mean")
    ]
    assert all(0 <= row["average"] <= 1 for row in rows)
    assert (tmp_path / "ablation.svg").stat().st_size > 1000
    assert len((tmp_path / "ablation.jsonl").read_text().splitlines()) == 4
    model = checkpoints.read_model(model_folder)
    ids, mask = torch.randint(2, 300, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    before = causal_states(model, ids, mask)
    ids[:, 5:] = 7
    torch.testing.assert_close(causal_states(model, ids, mask)[:, :5], before[:, :5])
    assert not torch.allclose(model(ids, mask)[:, :5], before[:, :5], atol=1e-3)


def test_loss_curves_are_drawn_and_a_run_without_log_is_named(pair, tmp_path, capsys):
    cfg, stage = pair
    train(cfg, stage(cfg))
    assert main(["plot", str(cfg.out), "--out", str(tmp_path / "loss.png")]) == 0
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", str(tmp_path / "none"), "--out", str(tmp_path / "x.png")]) == 2
    assert "not the log of a run" in capsys.readouterr().err


def test_a_large_vocabulary_is_packed_in_32_bits(data_folder, tokenizer_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tokenizers.Tokenizer.get_vocab_size", lambda *_, **__: 151_936, raising=False)
    pack(PackConfig(data=data_folder, tokenizer=tokenizer_folder, out=tmp_path / "p.npz"))
    assert PackedCorpus.open(tmp_path / "p.npz").ids.dtype == np.uint32
