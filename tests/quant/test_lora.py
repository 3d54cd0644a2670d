"""Low-rank adapters: gradients, merging, checkpoints, and resuming."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from training_samples import TINY

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_quant import lora
from pplx_quant.checkpoint import WEIGHTS, read_model
from pplx_quant.errors import ConfigError
from pplx_quant.loop import train
from pplx_quant.stages.pair import PairConfig, PairStage


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Qwen3Encoder(TINY)
    lora.add(model, rank=3, alpha=6.0, seed=1)
    with torch.no_grad():
        for name, weight in lora.adapters(model).items():
            if name.endswith("lora_b"):
                weight.normal_(0, 0.05)
    return model


def plain(model) -> Qwen3Encoder:
    merged = Qwen3Encoder(TINY)
    merged.load_state_dict(lora.merged_weights(model))
    return merged


def test_the_merged_model_computes_the_same_and_has_the_names_of_a_plain_one(model):
    ids = torch.randint(1, TINY.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(plain(model)(ids), model(ids), atol=1e-5, rtol=1e-4)


def test_new_adapters_change_nothing():
    torch.manual_seed(0)
    model, ids = Qwen3Encoder(TINY), torch.arange(1, 9)[None]
    before = model(ids)
    lora.add(model, rank=2, alpha=16.0, seed=0)
    assert torch.equal(model(ids), before)


def test_gradients_are_the_chain_rule_of_the_merged_weight_and_the_rest_is_frozen(model):
    ids = torch.arange(1, 9)[None]
    model(ids).square().sum().backward()
    merged = plain(model)
    merged(ids).square().sum().backward()
    for name, module in model.named_modules():
        if isinstance(module, lora.LoraLinear):
            gradient = merged.get_parameter(f"{name}.weight").grad
            torch.testing.assert_close(module.lora_a.grad, 2 * module.lora_b.T @ gradient, atol=1e-3, rtol=1e-3)
            torch.testing.assert_close(module.lora_b.grad, 2 * gradient @ module.lora_a.T, atol=1e-3, rtol=1e-3)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == set(lora.adapters(model))
    assert len(trained) == 2 * 7 * TINY.n_layers


def test_only_linear_layers_have_adapters(model):
    assert {type(module) for module in model.modules() if hasattr(module, "lora_a")} == {lora.LoraLinear}
    assert not any(type(module) is nn.Linear for module in model.modules())


@pytest.fixture
def cfg(packed_file, model_folder, tmp_path):
    return PairConfig(
        data=packed_file,
        init=model_folder,
        out=tmp_path / "run",
        lora=4,
        steps=6,
        batch=16,
        block=16,
        dims=(32, 16),
        warmup=1,
        log_every=1,
        matrix_rate=0.01,
        save_every=100,
        precision="float32",
    )


def test_a_run_writes_merged_weights_and_continues_to_the_same_ones(cfg, tmp_path):
    train(replace(cfg, out=tmp_path / "whole"), PairStage(cfg))
    train(replace(cfg, minutes=1e-9), PairStage(cfg))
    state = load_file(cfg.out / "checkpoint" / "training_state.safetensors")
    assert sum(name.startswith("lora.") for name in state) == 2 * 7 * TINY.n_layers
    train(cfg, PairStage(cfg))
    whole, resumed = (load_file(folder / "checkpoint" / WEIGHTS) for folder in (tmp_path / "whole", cfg.out))
    before = load_file(cfg.init / WEIGHTS)
    assert set(whole) == set(before)
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
        changed = not torch.equal(weight, before[name])
        assert changed == name.endswith("proj.weight")
    assert isinstance(read_model(cfg.out / "checkpoint"), Qwen3Encoder)  # opens like any other
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "int8"}, "without fake quantization"),
        ({"optimizer": "muon"}, "with AdamW"),
        ({"lora": -1}, "must not be negative"),
        ({"blocks": False}, "--no-blocks trains the table alone"),
    ],
)
def test_what_does_not_go_with_adapters_is_refused(cfg, change, said):
    with pytest.raises(ConfigError, match=said):
        replace(cfg, **change)
