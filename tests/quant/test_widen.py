"""A wider model says in its first components what it said before."""

import numpy as np
import pytest
import torch
from training_samples import TINY

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_quant.checkpoint import read_model, write_checkpoint
from pplx_quant.commands import main
from pplx_quant.model import encoder_means, new_model, whole_rows
from pplx_quant.tokenizer import load_tokenizer
from pplx_quant.widen import spread_constant, widen

WIDE = 44


@pytest.fixture
def trained(tokenizer_folder) -> Qwen3Encoder:
    """A model without blocks to speak of, with frequent and rare tokens."""
    counts = np.random.default_rng(0).integers(1, 50, TINY.vocab_size)
    return new_model(TINY, load_tokenizer(tokenizer_folder), counts, seed=1)


@pytest.mark.parametrize("strength", [0.0, 0.3])
def test_old_components_keep_their_values_and_new_ones_come_after_them(trained, tokenizer_folder, strength):
    wide = widen(trained, load_tokenizer(tokenizer_folder), WIDE, strength, seed=1)
    rows = whole_rows([np.array([5, 9, 9, 40]), np.array([7]), np.arange(2, 60)])
    before, after = (encoder_means(model, rows).detach() for model in (trained, wide))
    old = TINY.hidden_size - 1
    assert after.shape == (3, WIDE)
    torch.testing.assert_close(after[:, :old], before[:, :old])
    torch.testing.assert_close(after[:, -1], torch.zeros(3))
    new = after[:, old:-1].norm(dim=1) / after[:, :old].norm(dim=1)
    expected = strength * ((WIDE - 1 - old) / old) ** 0.5
    torch.testing.assert_close(new, torch.full((3,), expected), rtol=0.6, atol=1e-6)


def test_blocks_leave_new_components_alone(trained, tokenizer_folder):
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.normal_(0, 0.1)
    wide = widen(trained, load_tokenizer(tokenizer_folder), WIDE, 0.5, seed=1)
    added = slice(TINY.hidden_size - 1, -1)
    ids = torch.arange(2, 60)[None]
    states = wide._states(ids, None)  # normalized at the end, by one factor a token
    table = wide.embed_tokens.weight[ids] * wide.norm.weight
    cosines = torch.cosine_similarity(states[..., added], table[..., added], dim=-1)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))


def test_a_word_form_has_one_new_direction(trained, tokenizer_folder):
    tokenizer = load_tokenizer(tokenizer_folder)
    added = widen(trained, tokenizer, WIDE, 0.5, seed=1).embed_tokens.weight.detach()[:, TINY.hidden_size - 1 : -1]
    units = added / added.norm(dim=1, keepdim=True)
    forms = [tokenizer.decode([token]).strip().casefold() for token in range(TINY.vocab_size)]
    first, second = next((forms.index(form), n) for n, form in enumerate(forms) if form and forms.index(form) < n)
    torch.testing.assert_close(units[first], units[second])
    assert abs(float(units[first] @ units[first + 1])) < 0.95


@pytest.mark.parametrize("constants", [1, 4])
def test_a_spread_constant_keeps_the_other_components_and_makes_rows_even(trained, tokenizer_folder, constants):
    rows = whole_rows([np.array([5, 9, 9, 40]), np.array([7])])
    table = trained.embed_tokens.weight.detach()
    before, lengths = encoder_means(trained, rows).detach(), table.norm(dim=1)
    spread_constant(trained, constants)
    after = encoder_means(trained, rows).detach()
    torch.testing.assert_close(after[:, :-constants], before[:, :-constants])
    torch.testing.assert_close(after[:, -constants:], torch.zeros(2, constants))
    torch.testing.assert_close(table.norm(dim=1), lengths)
    assert (table[:, -constants:] == table[:, -1:]).all()


def test_it_writes_a_checkpoint_and_refuses_what_it_cannot_widen(
    trained, tokenizer_folder, model_folder, tmp_path, capsys
):
    source, out = tmp_path / "narrow", tmp_path / "wide"
    write_checkpoint(source, trained, tokenizer_folder)
    options = ["--checkpoint", str(source), "--out", str(out), "--hidden-size"]
    assert main(["widen", *options, "31"]) == 2
    assert "must be at least the 32" in capsys.readouterr().err
    assert main(["widen", *options, "32", "--constants", "33"]) == 2
    assert "must be in 1…32" in capsys.readouterr().err
    assert main(["widen", *options, str(WIDE)]) == 0
    assert read_model(out).spec.hidden_size == WIDE
    assert main(["widen", "--checkpoint", str(model_folder), "--out", str(tmp_path / "no"), "--hidden-size", "64"]) == 2
    assert "does not set the last component to zero" in capsys.readouterr().err
