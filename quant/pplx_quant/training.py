"""What every stage's loop needs: optimisers, the learning rate's course, resume, and a log."""

import json
import math
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_quant.errors import DivergedError

EMBEDDING = "embed_tokens.weight"


def learning_rate_factor(step: int, n_steps: int, warmup: int, decay_share: float) -> float:
    """Warm-up, stable, decay: 0…1 linearly over `warmup` steps, 1, then linearly to 0 over the last `decay_share`."""
    rise = (step + 1) / (warmup + 1)
    fall = (n_steps - step) / max(1.0, decay_share * n_steps)
    return min(1.0, rise, fall)


def build_optimizers(
    model: Qwen3Encoder, embedding_rate: float, matrix_rate: float, vector_rate: float, with_blocks: bool
) -> list[Optimizer]:
    """Adam for the embedding table and the norms, Muon for the matrices of the blocks (absent without blocks)."""
    named = dict(model.named_parameters())
    vectors = [weight for weight in named.values() if weight.ndim == 1] if with_blocks else [model.norm.weight]
    adam = torch.optim.AdamW(
        [{"params": [named[EMBEDDING]], "lr": embedding_rate}, {"params": vectors, "lr": vector_rate}],
        betas=(0.9, 0.98),
        eps=1e-8,
        weight_decay=0.0,
    )
    optimizers: list[Optimizer] = [adam]
    if with_blocks:
        matrices = [weight for name, weight in named.items() if weight.ndim == 2 and name != EMBEDDING]
        optimizers.append(torch.optim.Muon(matrices, lr=matrix_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Set every group's rate to `factor` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak"]


def clip_gradients(model: Qwen3Encoder, limit: float) -> float:
    """Scale gradients to a total norm of at most `limit`; returns the norm before."""
    return float(torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.grad is not None], limit))


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

    def __init__(self, path: Path, last_step: int):
        self.path = path
        kept = [line for line in self._lines() if json.loads(line)["step"] <= last_step]
        path.write_text("".join(kept))
        self.started = time.perf_counter()

    def write(self, step: int, **values: float) -> None:
        """Append one row: the step, seconds since this process began to log, and `values`."""
        row = {"step": step, "seconds": round(time.perf_counter() - self.started, 1), **values}
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def _lines(self) -> list[str]:
        return self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
