"""A sharded model (FSDP2) in several processes trains as a whole one in one process."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from pplx_quant.errors import ConfigError
from pplx_quant.stages.diffuse import DiffuseConfig
from pplx_quant.stages.pair import PairConfig


def losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_two_processes_with_parts_of_a_model_train_as_one_with_all_of_it(packed_file, model_folder, tmp_path):
    # --call-tokens gives an odd number of calls, so that one process has to wait for the other.
    options = ["--data", packed_file, "--init", model_folder, "--warmup", 2, "--log-every", 1, "--precision", "float32"]
    options += ["--call-tokens", 150, "--batch", 16, "--block", 8, "--dims", 32, 16, "--threads", 1, "--grad-cache"]
    options += ["--validate-on", "sample", "--pool", 20, "--decay-share", 0.2]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    alone = [sys.executable, "-m"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for command, folder, steps, more in (
        (alone, "whole", 5, []),
        (launch, "parts", 5, ["--shard", "--minutes", 1e-9]),  # stops after one step
        (launch, "parts", 5, ["--shard"]),  # continues
    ):
        module = ["pplx_quant", "pair", *options, "--steps", steps, *more, "--out", tmp_path / folder]
        done = subprocess.run([*command, *map(str, module)], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert losses(parts) == pytest.approx(losses(whole), rel=2e-4)
    found = load_file(parts / "checkpoint" / "model.safetensors")
    for name, weight in load_file(whole / "checkpoint" / "model.safetensors").items():
        torch.testing.assert_close(found[name], weight, atol=2e-4, rtol=2e-3)
    states = [load_file(folder / "checkpoint" / "training_state.safetensors") for folder in (whole, parts)]
    assert {name: value.shape for name, value in states[0].items()} == {
        name: value.shape for name, value in states[1].items()
    }
    scores = [json.loads((folder / "log.jsonl").read_text().splitlines()[-1]) for folder in (whole, parts)]
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
