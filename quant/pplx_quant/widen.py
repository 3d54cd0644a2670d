"""A wider copy of a trained model: the old components say what they said, new ones tell words apart.

python -m pplx_quant.widen --checkpoint DIR --out DIR --hidden-size N [--constants K]

For models whose last component is the one that the final norm does not let through (see `pplx_quant.model`): new
components are put before it, so that the first ones, which a matryoshka vector keeps, stay the first. Without blocks
the old components are what they were. Blocks neither read nor write new components, but see a larger last one, so train
them again.

The last component is by far the largest of frequent tokens, and the steps of an int8 row are a share of its largest.
`--constants K` spreads it over the last K components, each √K times smaller; the K − 1 before it are given up for that.
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_quant.checkpoint import read_model, write_checkpoint
from pplx_quant.errors import ConfigError
from pplx_quant.model import form_directions
from pplx_quant.options import run_command
from pplx_quant.tokenizer import load_tokenizer
from pplx_quant.training import EMBEDDING

READERS = ("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")
WRITERS = ("o_proj.weight", "down_proj.weight")
HEAD_NORMS = ("q_norm.weight", "k_norm.weight")


@dataclass(frozen=True)
class WidenConfig:
    """From which checkpoint to how many components."""

    checkpoint: Path
    out: Path
    hidden_size: int
    constants: int = field(default=1, metadata={"help": "last components to spread the constant over"})
    strength: float = field(default=0.7, metadata={"help": "length of a new component beside an old one of its token"})
    seed: int = 1


def widen(model: Qwen3Encoder, tokenizer: Tokenizer, hidden_size: int, strength: float, seed: int) -> Qwen3Encoder:
    """A float32 model of `hidden_size` components, new ones with a random direction for each word form.

    That is `model` itself when it has as many.

    A token's last component takes up what RMS normalisation needs for the old components to keep their size, as far
    as that does not make it smaller than it was.

    Raises ConfigError when the model is wider, or its final norm lets the last component through.
    """
    old, scale = model.spec.hidden_size, model.norm.weight.detach()
    if hidden_size < old:
        raise ConfigError(f"--hidden-size {hidden_size} must be at least the {old} of the checkpoint")
    if float(scale[-1].abs()) > 1e-2 * float(scale.abs().median()):
        raise ConfigError(f"the final norm lets the last component through ({float(scale[-1]):.3g}); nothing to widen")
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
    """Give the last component of each token to its last `constants` components in equal shares, in place.

    What the others of these said is lost. Raises ConfigError unless `constants` is in 1…D.
    """
    table, scale = model.embed_tokens.weight, model.norm.weight
    if not 1 <= constants <= table.shape[1]:
        raise ConfigError(f"--constants {constants} must be in 1…{table.shape[1]}")
    with torch.no_grad():
        length = table[:, -constants:].norm(dim=1, keepdim=True)  # what was lost goes into the constant
        table[:, -constants:] = (length / constants**0.5).copysign(table[:, -1:])
        scale[-constants:] = scale[-1]


def inserted(rows: Tensor, new: Tensor) -> Tensor:
    """`rows` `[N, D]` with `new` `[N, M]` before the last column."""
    return torch.cat([rows[:, :-1], new, rows[:, -1:]], dim=1)


def widen_checkpoint(cfg: WidenConfig) -> None:
    """Read, widen and write a checkpoint."""
    tokenizer = load_tokenizer(cfg.checkpoint)
    wide = widen(read_model(cfg.checkpoint), tokenizer, cfg.hidden_size, cfg.strength, cfg.seed)
    spread_constant(wide, cfg.constants)
    write_checkpoint(cfg.out, wide, cfg.checkpoint)


def main(argv: list[str] | None = None) -> int:
    """Widen a checkpoint; returns the exit status."""
    return run_command(WidenConfig, widen_checkpoint, "A wider copy of a trained model.", argv)


if __name__ == "__main__":
    sys.exit(main())
