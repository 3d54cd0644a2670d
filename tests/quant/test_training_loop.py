"""Resuming on another machine, precision and device, several processes, validation during training, optimizers."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from pplx_edge.models.qwen3_torch import Qwen3Encoder, attend, attend_by_products
from pplx_edge.vectors.codes import int8_codes
from pplx_quant import distributed, hardware, optimizers
from pplx_quant.checkpoint import STATE_VALUES, WEIGHTS, read_model
from pplx_quant.corpus import PackedCorpus
from pplx_quant.distributed import World, buckets
from pplx_quant.errors import ConfigError, TrainError
from pplx_quant.hard_negatives import MiningOptions, encode_rows_with_torch, mine_negatives
from pplx_quant.hardware import choose_device, uses_bfloat16
from pplx_quant.loop import Run, train
from pplx_quant.mine import MineConfig, choose_pairs, mine
from pplx_quant.model import encoder_means, whole_rows
from pplx_quant.optimizers import Rates, RowwiseAdam, build_optimizers
from pplx_quant.stages.diffuse import DiffuseConfig
from pplx_quant.stages.pair import PairConfig, PairStage


@pytest.fixture
def cfg(packed_file, model_folder, tmp_path) -> PairConfig:
    return PairConfig(
        data=packed_file,
        init=model_folder,
        out=tmp_path / "run",
        steps=8,
        batch=16,
        block=16,
        dims=(32, 16),
        warmup=2,
        log_every=1,
        precision="float32",
    )


def run(cfg: PairConfig) -> list[dict]:
    """Train, and return the log."""
    train(cfg, PairStage(cfg))
    return [json.loads(line) for line in (cfg.out / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


# ---------------------------------------------------------------- precision and device


@pytest.mark.parametrize(
    ("features", "fast"),
    [
        ({"avx2": True}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": False}, False),
    ],
)
def test_automatic_precision_is_that_of_the_processor(monkeypatch, features, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    hardware.has_fast_bfloat16.cache_clear()
    cpu = torch.device("cpu")
    assert uses_bfloat16("auto", cpu) is fast
    assert uses_bfloat16("bfloat16", cpu)
    assert not uses_bfloat16("float32", cpu)
    hardware.has_fast_bfloat16.cache_clear()


@pytest.mark.parametrize("supported", [False, True])
def test_automatic_precision_is_that_of_the_gpu(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    hardware.has_fast_bfloat16.cache_clear()
    assert uses_bfloat16("auto", torch.device("cuda")) is supported
    hardware.has_fast_bfloat16.cache_clear()


def test_the_precision_is_printed(cfg, capsys):
    run(replace(cfg, steps=1))
    assert "pair: float32 on cpu" in capsys.readouterr().err
    run(replace(cfg, steps=1, precision="bfloat16", out=cfg.out.with_name("half")))
    assert "pair: bfloat16 on cpu" in capsys.readouterr().err


def test_the_device_is_a_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert choose_device("auto") == torch.device("cuda", 1)
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert choose_device("auto") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(ConfigError, match=f"--device {name}: not available"):
            choose_device(name)


def test_a_process_on_a_gpu_claims_it_before_it_joins(monkeypatch):
    calls = []
    monkeypatch.setattr(distributed, "choose_device", lambda name: torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("set", device)))
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: False)
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda kind, device_id: calls.append((kind, device_id)))
    monkeypatch.setattr(distributed.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed.dist, "get_world_size", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    gpu = torch.device("cuda", 1)
    assert World.join() == World(1, 2, gpu)
    assert calls == [("set", gpu), ("nccl", gpu)]


# ---------------------------------------------------------------- resuming


def test_a_run_continues_on_another_kind_of_machine(cfg):
    run(replace(cfg, minutes=1e-9))
    moved = {"precision": "bfloat16", "recompute": True, "grad_cache": True, "call_tokens": 64, "save_every": 3}
    log = run(replace(cfg, **moved))
    assert log[-1]["step"] == 8
    assert {row["changed"].split(":")[0] for row in log if "changed" in row} == set(moved)
    assert "call_tokens: 8192 -> 64" in [row.get("changed") for row in log]
    with pytest.raises(ConfigError, match=r"run with other options \(seed=1\)"):
        run(replace(cfg, seed=2))


def test_steps_may_grow_before_the_rate_falls(cfg):
    short, long = replace(cfg, decay_share=0.5), replace(cfg, decay_share=0.5, steps=20)
    run(replace(short, save_every=1, minutes=1e-9))  # one step, while the rate rises
    assert run(long)[-1]["step"] == 20
    run(replace(long, out=cfg.out.with_name("whole")))
    for name, weight in weights(cfg.out / "checkpoint").items():
        assert torch.equal(weight, weights(cfg.out.with_name("whole") / "checkpoint")[name])
    with pytest.raises(ConfigError, match=r"other options \(steps=20\)"):
        run(replace(long, steps=40))
    with pytest.raises(ConfigError, match=r"other options \(steps=20\)"):
        run(replace(long, steps=10))


# ---------------------------------------------------------------- several processes


def test_an_error_in_one_process_ends_all(monkeypatch):
    monkeypatch.setattr(World, "gather", lambda self, value: [value, "no such file"])
    with pytest.raises(TrainError, match="process 1: no such file"):
        World(0, 2).together(lambda: 1)

    def fail() -> None:
        raise ConfigError("my own")

    with pytest.raises(ConfigError, match="my own"):
        World(0, 2).together(fail)
    monkeypatch.undo()
    assert World().together(lambda: 1) == 1


def test_processes_with_refused_options_end_at_once(cfg):
    run(replace(cfg, steps=1))
    options = ["--data", cfg.data, "--init", cfg.init, "--out", cfg.out, "--steps", 1, "--seed", 5, "--threads", 1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [*launch, "pplx_quant", "pair", *map(str, options), "--dims", "32"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert done.returncode != 0
    assert b"contains a run with other options" in done.stderr


def test_gradients_are_summed_in_buckets(monkeypatch):
    parameters = [torch.nn.Parameter(torch.ones(size)) for size in (3, 4, 1000, 2)]
    for parameter in parameters[:-1]:
        parameter.grad = torch.arange(len(parameter), dtype=torch.float32)
    sizes = []

    def twice(self: World, tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(len(tensor))
        return tensor.mul_(2)

    monkeypatch.setattr(World, "sum", twice)
    monkeypatch.setattr(distributed, "buckets", partial(buckets, limit=64))
    World(0, 2).sum_gradients(parameters)
    assert sizes == [7, 1000, 2]
    for parameter in parameters[:-1]:
        assert torch.equal(parameter.grad, 2 * torch.arange(len(parameter), dtype=torch.float32))
    assert torch.equal(parameters[-1].grad, torch.zeros(2))


# ---------------------------------------------------------------- validation during training


def test_the_best_checkpoint_is_kept_and_training_stops_early(cfg, monkeypatch):
    scores = iter([0.2, 0.5, 0.4, 0.3, 0.9])
    monkeypatch.setattr(PairStage, "validate", lambda self, model: {"ndcg_sample": next(scores), "binary_sample": 1.0})
    watched = replace(cfg, steps=20, validate_on=("sample",), validate_every=2, patience=2)
    log = run(watched)
    assert [row["step"] for row in log if "ndcg_sample" in row] == [2, 4, 6, 8]
    assert log[-1]["step"] == 8
    factors = [row["learning_rate_factor"] for row in log if "loss" in row]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1], abs=1e-4)
    assert len(run(watched)) == len(log)  # finished
    whole = replace(cfg, steps=20, out=cfg.out.with_name("whole"), save_every=4, log_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(PairStage, "accumulate", stop_at(4, PairStage.accumulate))
        with pytest.raises(KeyboardInterrupt):
            run(whole)
    best, fourth = weights(cfg.out / "best"), weights(whole.out / "checkpoint")
    assert all(torch.equal(weight, fourth[name]) for name, weight in best.items())
    assert not (cfg.out / "best" / "training_state.json").exists()


def stop_at(step, function):
    calls = iter(range(100))

    def call(*args):
        if next(calls) == step:
            raise KeyboardInterrupt
        return function(*args)

    return call


def test_validation_options_that_do_nothing_are_refused(cfg, packed_file, model_folder, tmp_path):
    for options, message in (
        ({"patience": 2}, "needs --validate-every"),
        ({"validate_every": 2}, "needs --validate-on"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(cfg, **options)
    with pytest.raises(ConfigError, match="has no validation"):
        DiffuseConfig(data=packed_file, init=model_folder, out=tmp_path, validate_every=2)


# ---------------------------------------------------------------- optimizers


def test_rowwise_adam_moves_rows_by_their_scaled_gradient_and_keeps_one_number_a_row():
    table = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = RowwiseAdam([table], lr=0.1)
    gradient = torch.tensor([[1.0, -1, 1, -1], [0, 0, 0, 0], [2.0, 0, 0, 0]])
    for _ in range(3):
        table.grad = gradient.clone()
        optimizer.step()
    expected = -0.3 * gradient / torch.tensor([1.0, 1.0, 1.0])[:, None]
    torch.testing.assert_close(table.detach(), expected, atol=1e-5, rtol=1e-5)
    assert sum(value.numel() for value in optimizer.state[table].values()) == 4


def test_weight_decay_is_that_of_the_matrices_and_adam_is_fused(model_folder):
    model = read_model(model_folder)
    (optimizer,) = build_optimizers(model, Rates(1.0, 2.0, 3.0), "adamw", True, weight_decay=0.01)
    assert {group["peak"]: group["weight_decay"] for group in optimizer.param_groups} == {1.0: 0, 2.0: 0.01, 3.0: 0}
    assert optimizer.defaults["fused"]


@pytest.mark.parametrize("options", [{"table_optimizer": "rowwise"}, {"weight_decay": 0.1, "optimizer": "muon"}])
def test_a_run_resumes_with_every_optimizer(cfg, tmp_path, options):
    whole, cut = (replace(cfg, out=tmp_path / name, **options) for name in ("whole", "cut"))
    losses = [row["loss"] for row in run(whole)]
    for _ in range(8):
        run(replace(cut, minutes=1e-9))
    for name, weight in weights(whole.out / "checkpoint").items():
        assert torch.equal(weight, weights(cut.out / "checkpoint")[name])
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
def test_muon_in_float32_moves_like_that_of_torch(shape, monkeypatch):
    monkeypatch.setattr(optimizers, "has_fast_bfloat16", lambda kind: False)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator)
    gradients = [torch.randn(shape, generator=generator) for _ in range(3)]
    moved = []
    for make in (optimizers.Muon, partial(torch.optim.Muon, adjust_lr_fn=optimizers.MUON_SCALE)):
        weight = torch.nn.Parameter(start.clone())
        optimizer = make([weight], lr=0.1, weight_decay=0.1)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        moved.append(weight.detach() - start)
    ours, theirs = moved  # torch rounds to 8 bits on the way
    assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999
    assert float(ours.norm()) == pytest.approx(float(theirs.norm()), rel=0.01)


# ---------------------------------------------------------------- attention and mining on a GPU


def test_shared_heads_give_the_attention_of_repeated_ones():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 7, 8, generator=generator) for heads in (4, 2, 2))
    torch.testing.assert_close(attend(q, k, v, None, grouped=True), attend(q, k, v, None, grouped=False))


def test_attention_by_products_has_the_values_and_gradients_of_the_kernel():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 7, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2))
    for visible in (None, torch.tensor([[1] * 7, [1] * 4 + [0] * 3]).bool()[:, None, None, :]):
        found, wanted = attend_by_products(q, k, v, visible), attend(q, k, v, visible, grouped=False)
        torch.testing.assert_close(found, wanted)
        weights = torch.randn(wanted.shape, generator=generator)
        gradients = [torch.autograd.grad(out, (q, k, v), weights) for out in (found, wanted)]
        torch.testing.assert_close(*gradients)


def test_the_mask_is_not_read_on_a_device(model_folder):
    model = Qwen3Encoder(read_model(model_folder).spec).to("meta")
    ids = torch.ones(2, 5, dtype=torch.int64, device="meta")
    assert model(ids, torch.ones_like(ids)).shape == (2, 5, 32)  # meta tensors have no values to read


def test_rows_encoded_by_torch_are_the_codes_of_their_means(model_folder):
    model = read_model(model_folder)
    generator = np.random.default_rng(0)
    rows = [generator.integers(2, 300, length) for length in (5, 0, 30, 5)]
    hardware.has_fast_bfloat16.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
        codes = encode_rows_with_torch(model, rows)
    hardware.has_fast_bfloat16.cache_clear()
    assert not codes[1].any()
    means = encoder_means(model, whole_rows([rows[0], rows[2], rows[3]])).detach().numpy()
    assert np.abs(codes[[0, 2, 3]].astype(int) - int8_codes(means)).max() <= 1
    assert encode_rows_with_torch(model, []).shape == (0, 32)


def test_negatives_are_mined_with_the_torch_encoder(packed_file, model_folder, tmp_path):
    packed = PackedCorpus.open(packed_file)
    options = MiningOptions(n=3, depth=5, margin=1.0)
    config = MineConfig(packed_file, model_folder, tmp_path / "mined", n=3, depth=5, margin=1.0, encoder="torch")
    mine(replace(config, sampled=False))
    rows = choose_pairs(packed, config)
    queries, passages = (np.unique(packed.pairs[rows, side]) for side in (0, 1))
    model = read_model(model_folder)
    codes = [encode_rows_with_torch(model, packed.texts(texts, 128)) for texts in (queries, passages)]
    positives = [np.searchsorted(passages, packed.pairs[rows[packed.pairs[rows, 0] == q], 1]) for q in queries]
    expected = passages[mine_negatives(*codes, positives, options)][np.searchsorted(queries, packed.pairs[rows, 0])]
    assert np.array_equal(np.load(tmp_path / "mined" / "negatives.npy")[rows], expected)
    with pytest.raises(ConfigError, match="--encoder gpu must be one of"):
        replace(config, encoder="gpu")


# ---------------------------------------------------------------- signals


def test_sigterm_stops_with_a_checkpoint_and_the_run_continues_to_the_same_weights(cfg, tmp_path):
    class Interrupted(PairStage):
        def accumulate(self, model, step, world):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().accumulate(model, step, world)

    train(replace(cfg, save_every=100), Interrupted(cfg))
    before = signal.getsignal(signal.SIGTERM)
    assert json.loads((cfg.out / "checkpoint" / STATE_VALUES).read_text())["step"] == 3
    run(replace(cfg, save_every=100))
    run(replace(cfg, out=tmp_path / "whole"))
    whole = weights(tmp_path / "whole" / "checkpoint")
    assert all(torch.equal(value, whole[name]) for name, value in weights(cfg.out / "checkpoint").items())
    assert signal.getsignal(signal.SIGTERM) == before


def test_save_minutes_saves_between_the_steps_of_save_every(cfg, monkeypatch):
    saved = []
    save = Run.save
    monkeypatch.setattr(Run, "save", lambda self: (saved.append(self.step), save(self)))
    run(replace(cfg, steps=4, save_every=100, save_minutes=1e-9))
    assert saved == [1, 2, 3, 4]


def test_a_table_with_rate_zero_is_not_trained(cfg):
    run(replace(cfg, steps=2, embedding_rate=0.0))
    before, after = weights(cfg.init), weights(cfg.out / "checkpoint")
    assert torch.equal(before["embed_tokens.weight"], after["embed_tokens.weight"])
    assert not torch.equal(before["layers.0.mlp.up_proj.weight"], after["layers.0.mlp.up_proj.weight"])
