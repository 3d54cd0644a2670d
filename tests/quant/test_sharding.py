"""A sharded model (FSDP2) in several processes trains as a whole one in one process."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pplx_quant.errors import ConfigError
from pplx_quant.loop import train
from pplx_quant.stages.diffuse import DiffuseConfig
from pplx_quant.stages.pair import PairConfig, PairStage


def losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_two_processes_with_parts_of_a_model_train_as_one_with_all_of_it(packed_file, model_folder, tmp_path):
    """The second run takes one step with the whole model, and continues with parts in two processes."""
    whole = PairConfig(
        data=packed_file,
        init=model_folder,
        out=tmp_path / "whole",
        steps=5,
        warmup=2,
        decay_share=0.2,
        log_every=1,
        batch=16,
        block=8,
        dims=(32, 16),
        call_tokens=150,  # an odd number of calls, so that one process has to wait for the other
        grad_cache=True,
        precision="float32",
        validate_on=("sample",),
        pool=20,
    )
    train(whole, PairStage(whole))
    parts = replace(whole, out=tmp_path / "parts")
    train(replace(parts, minutes=1e-9), PairStage(parts))
    options = ["--data", packed_file, "--init", model_folder, "--out", parts.out, "--steps", 5, "--warmup", 2]
    options += ["--decay-share", 0.2, "--log-every", 1, "--batch", 16, "--block", 8, "--dims", 32, 16]
    options += ["--call-tokens", 150, "--grad-cache", "--precision", "float32", "--validate-on", "sample", "--pool", 20]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "pplx_quant", "pair", *map(str, options), "--shard"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert losses(parts.out) == pytest.approx(losses(whole.out), rel=2e-4)
    found = load_file(parts.out / "checkpoint" / "model.safetensors")
    for name, weight in load_file(whole.out / "checkpoint" / "model.safetensors").items():
        torch.testing.assert_close(found[name], weight, atol=2e-4, rtol=2e-3)
    states = [load_file(cfg.out / "checkpoint" / "training_state.safetensors") for cfg in (whole, parts)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=2e-4, rtol=2e-2)
    scores = [json.loads((cfg.out / "log.jsonl").read_text().splitlines()[-1]) for cfg in (whole, parts)]
    assert scores[0]["ndcg_sample"] == pytest.approx(scores[1]["ndcg_sample"], abs=0.05)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "--shard needs --grad-cache"),
        ({"grad_cache": True, "lora": 4}, "trains all parameters"),
        ({"grad_cache": True, "table_optimizer": "rowwise"}, "--table-optimizer adamw"),
        ({"grad_cache": True, "blocks": False}, "--no-blocks"),
    ],
)
def test_what_cannot_be_sharded_is_refused(tmp_path, change, said):
    with pytest.raises(ConfigError, match=said):
        PairConfig(data=tmp_path, init=tmp_path, out=tmp_path, shard=True, **change)


def test_a_stage_without_grad_cache_cannot_be_sharded(tmp_path):
    with pytest.raises(ConfigError, match="--grad-cache"):
        DiffuseConfig(data=tmp_path, init=tmp_path, out=tmp_path, shard=True)
