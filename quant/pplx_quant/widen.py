"""Add dimensions to the vectors of a trained model. The new dimensions tell apart forms of a word, such as upper case.

python -m pplx_quant widen --checkpoint DIR --out DIR --hidden-size N [--constants K]

This is for models that `pair --tokenizer` made, and not for models of the family. In these models, the last component
of a token is a constant that makes frequent tokens count less; the final norm sets it to zero, so it is no part of a
vector. New components are inserted before it, so the first components, which a Matryoshka vector keeps, stay the first.
The old components of a bag of words (`--no-blocks`) do not change. The blocks do not read the new components at first,
but the constant has grown, so train them again.

The constant is by far the largest component of frequent tokens, and the steps of an int8 row are proportional to the
largest component. `--constants K` spreads it over the last K components, each √K times smaller. The values of the K − 1
components before it, which are new ones if there are as many, are overwritten.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_quant.checkpoint import read_model, write_checkpoint
from pplx_quant.errors import ConfigError
from pplx_quant.model import form_directions
from pplx_quant.optimizers import EMBEDDING
from pplx_quant.options import option, required
from pplx_quant.tokenizer import load_tokenizer

READERS = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
WRITERS = ("o_proj.weight", "down_proj.weight")
HEAD_NORMS = ("q_norm.weight", "k_norm.weight")


@dataclass(frozen=True)
class WidenConfig:
    """Options of `widen`."""

    checkpoint: Path = required("Checkpoint to widen.")
    out: Path = required("Directory to write the wider checkpoint to.")
    hidden_size: int = required("Dimensions of the wider model.")
    constants: int = option(1, "Number of last components to spread the last component over.")
    strength: float = option(0.7, "Root mean square of new components, relative to the old ones of the token.")
    seed: int = option(1, "Seed of the random directions.")


def widen(model: Qwen3Encoder, tokenizer: Tokenizer, hidden_size: int, strength: float, seed: int) -> Qwen3Encoder:
    """Return a float32 model of `hidden_size` dimensions; the new ones are a random direction for each word form.

    This is `model` itself if it has that many dimensions. The last component of a token grows as far as is necessary to
    keep the size of the old components after RMS normalization, and never shrinks.

    Raises ConfigError if the model is wider, or if its final norm does not set the last component to zero.
    """
    old, scale = model.spec.hidden_size, model.norm.weight.detach()
    if hidden_size < old:
        raise ConfigError(f"--hidden-size {hidden_size} must be at least the {old} of the checkpoint")
    if float(scale[-1].abs()) > 1e-2 * float(scale.abs().median()):
        last = float(scale[-1])
        raise ConfigError(f"cannot widen: the final norm does not set the last component to zero ({last:.3g})")
    if hidden_size == old:
        return model
    wide = Qwen3Encoder(dataclasses.replace(model.spec, hidden_size=hidden_size))
    n_new, weights = hidden_size - old, dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in wide.named_parameters():
            source = weights[name]
            if name.endswith(READERS):
                weight.copy_(inserted(source, source.new_zeros(len(source), n_new)))
            elif name.endswith(WRITERS):
                weight.copy_(inserted(source.T, source.new_zeros(source.shape[1], n_new)).T)
            elif name.endswith(HEAD_NORMS):
                weight.copy_(source)
            elif name != EMBEDDING:  # norms of the residual stream
                weight.copy_(inserted(source[None], source.median().expand(1, n_new))[0])
        table = model.embed_tokens.weight
        rms = table[:, :-1].square().mean(dim=1, keepdim=True).sqrt()
        directions = torch.from_numpy(form_directions(tokenizer, n_new, seed)) * n_new**0.5
        wider = inserted(table, strength * rms * directions)
        needed = table.square().sum(dim=1) * hidden_size / old - wider[:, :-1].square().sum(dim=1)
        wider[:, -1] = torch.maximum(needed, table[:, -1].square()).sqrt().copysign(table[:, -1])
        wide.embed_tokens.weight.copy_(wider)
    return wide


def spread_constant(model: Qwen3Encoder, constants: int) -> None:
    """Spread the last component of each token equally over the last `constants` components, in place.

    The previous values of these are lost. Raises ConfigError unless `constants` is in 1…D.
    """
    table, scale = model.embed_tokens.weight, model.norm.weight
    if not 1 <= constants <= table.shape[1]:
        raise ConfigError(f"--constants {constants} must be in 1…{table.shape[1]}")
    with torch.no_grad():
        length = table[:, -constants:].norm(dim=1, keepdim=True)  # keeps the length of the row
        table[:, -constants:] = (length / constants**0.5).copysign(table[:, -1:])
        scale[-constants:] = scale[-1]


def inserted(rows: Tensor, new: Tensor) -> Tensor:
    """Return `rows` `[N, D]` with `new` `[N, M]` inserted before the last column."""
    return torch.cat([rows[:, :-1], new, rows[:, -1:]], dim=1)


def widen_checkpoint(cfg: WidenConfig) -> None:
    """Read, widen and write a checkpoint."""
    tokenizer = load_tokenizer(cfg.checkpoint)
    wide = widen(read_model(cfg.checkpoint), tokenizer, cfg.hidden_size, cfg.strength, cfg.seed)
    spread_constant(wide, cfg.constants)
    write_checkpoint(cfg.out, wide, cfg.checkpoint)
