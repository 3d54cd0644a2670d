"""What every stage's loop needs: optimisers, the learning rate's course, resume, and a log."""

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_quant.errors import DivergedError

EMBEDDING = "embed_tokens.weight"
OPTIMIZERS = ("adamw", "muon")
MUON_SCALE = "match_rms_adamw"  # so that a matrix moves about as far as under AdamW at the same rate


def learning_rate_factor(step: int, n_steps: int, warmup: int, decay_share: float) -> float:
    """Warm-up, stable, decay: 0…1 linearly over `warmup` steps, 1, then linearly to 0 over the last `decay_share`."""
    rise = (step + 1) / (warmup + 1)
    fall = (n_steps - step) / max(1.0, decay_share * n_steps)
    return min(1.0, rise, fall)


@dataclass(frozen=True)
class Rates:
    """Peak learning rates: of the embedding table, of the matrices in blocks, and of norms."""

    embedding: float
    matrix: float
    vector: float


def build_optimizers(
    model: Qwen3Encoder, rates: Rates, optimizer: str, with_blocks: bool, head: nn.Module | None = None
) -> list[Optimizer]:
    """AdamW for all parameters; with `optimizer="muon"`, Muon for the matrices of the blocks.

    Without blocks only the table and the final norm are trained. A stage's `head` trains at the table's rate.
    """
    named = dict(model.named_parameters())
    groups = [{"params": [named[EMBEDDING], *(head.parameters() if head else ())], "lr": rates.embedding}]
    vectors = [weight for weight in named.values() if weight.ndim == 1] if with_blocks else [model.norm.weight]
    groups.append({"params": vectors, "lr": rates.vector})
    matrices = [weight for name, weight in named.items() if weight.ndim == 2 and name != EMBEDDING]
    if with_blocks and optimizer == "adamw":
        groups.append({"params": matrices, "lr": rates.matrix})
    optimizers: list[Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0)]
    if with_blocks and optimizer == "muon":
        optimizers.append(torch.optim.Muon(matrices, lr=rates.matrix, weight_decay=0.0, adjust_lr_fn=MUON_SCALE))
    for one in optimizers:
        for group in one.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Set every group's rate to `factor` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak"]


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale gradients to a total norm of at most `limit`; returns the norm before."""
    return float(nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], limit))


def require_finite_loss(loss: float, step: int, kept: Path) -> None:
    """Raise DivergedError, which says the step and the checkpoint that is left, unless the loss is finite."""
    if not math.isfinite(loss):
        raise DivergedError(f"step {step}: loss is {loss}; last good checkpoint: {kept}; try a lower learning rate")


def optimizer_tensors(optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """Every tensor of the optimisers' states, named `<optimiser>.<parameter>.<key>`."""
    return {
        f"{number}.{parameter}.{key}": value.contiguous()
        for number, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizers(optimizers: Iterable[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Put the tensors of `optimizer_tensors` back."""
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            owner, parameter, key = name.split(".", 2)
            if int(owner) == number:
                state.setdefault(int(parameter), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


class RunLog:
    """Appends JSON Lines to a file; lines past `last_step` that an earlier, killed run left are dropped."""

    def __init__(self, path: Path, last_step: int, silent: bool = False):
        self.path, self.silent = path, silent
        if not silent:
            kept = [line for line in self._lines() if json.loads(line)["step"] <= last_step]
            path.write_text("".join(kept))
        self.started = time.perf_counter()

    def write(self, step: int, **values: float) -> None:
        """Append one row: the step, seconds since this process began to log, and `values`."""
        if self.silent:
            return
        row = {"step": step, "seconds": round(time.perf_counter() - self.started, 1), **values}
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def _lines(self) -> list[str]:
        return self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
