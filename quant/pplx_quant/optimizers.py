"""Optimizers and learning rates of a run, and their state in a checkpoint."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_quant import lora, sharding
from pplx_quant.errors import DivergedError
from pplx_quant.hardware import has_fast_bfloat16

EMBEDDING = "embed_tokens.weight"
OPTIMIZERS = ("adamw", "muon")
TABLE_OPTIMIZERS = ("adamw", "rowwise")
BETAS = (0.9, 0.98)
MUON_SCALE = "match_rms_adamw"  # a matrix moves about as far as with AdamW at the same rate


def learning_rate_factor(step: int, n_steps: int, warmup: int, decay_share: float) -> float:
    """Return the factor of the peak learning rate at a step, in 0…1: warmup, plateau, decay.

    It rises linearly over the first `warmup` steps and falls linearly to 0 over the last `decay_share` of the steps.
    """
    rise = (step + 1) / (warmup + 1)
    fall = (n_steps - step) / max(1.0, decay_share * n_steps)
    return min(1.0, rise, fall)


@dataclass(frozen=True)
class Rates:
    """Peak learning rates of the embedding table, of the matrices in blocks, and of the norms."""

    embedding: float
    matrix: float
    vector: float


class RowwiseAdam(Optimizer):
    """Adam without first moment and with one second moment for each row, for the embedding table.

    The state is one float32 for each token, where AdamW keeps two tables. Rows without gradient do not change.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, beta: float = BETAS[1], eps: float = 1e-8):
        super().__init__(parameters, {"lr": lr, "beta": beta, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the rows by their gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.zeros((), device=weight.device)
                    state["squares"] = torch.zeros(len(weight), device=weight.device)
                state["step"] += 1
                state["squares"].lerp_(weight.grad.float().square().mean(dim=1), 1 - group["beta"])
                second = state["squares"] / (1 - group["beta"] ** state["step"])
                weight.addcmul_(weight.grad, (1 / (second.sqrt() + group["eps"]))[:, None], value=-group["lr"])


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, whose iteration runs in float32 where bfloat16 is slow.

    torch iterates in bfloat16 on every device, which takes minutes a step on processors that do not multiply it.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0):
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, adjust_lr_fn=MUON_SCALE)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the matrices by their gradients."""
        if has_fast_bfloat16(self.param_groups[0]["params"][0].device.type):
            super().step()
            return
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                mean = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(
                    weight.grad.lerp(mean, group["momentum"]), group["ns_coefficients"], group["ns_steps"]
                )
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], n_steps: int) -> Tensor:
    """Return a matrix with the singular vectors of another, and singular values near 1, in the same dtype.

    It is the Newton–Schulz iteration of Muon (https://kellerjordan.github.io/posts/muon/).
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    a, b, c = coefficients
    for _ in range(n_steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


def build_optimizers(
    model: Qwen3Encoder,
    rates: Rates,
    optimizer: str,
    with_blocks: bool,
    head: nn.Module | None = None,
    weight_decay: float = 0.0,
    table_optimizer: str = "adamw",
) -> list[Optimizer]:
    """Return AdamW for all parameters, except those that have an optimizer of their own.

    Of a model with adapters, only these are trained, at the rate of matrices. Parameters with an optimizer of their own
    are the matrices of the blocks with `optimizer="muon"`, and the table with `table_optimizer="rowwise"`.
    Without blocks, only the table and the final norm are trained. The `head` of a stage has the rate of the table.
    Weight decay is that of the matrices in blocks. With a rate of 0, the table is not trained.
    """
    if adapters := list(lora.adapters(model).values()):
        groups: list[dict] = [
            {"params": adapters, "lr": rates.matrix, "peak": rates.matrix, "weight_decay": weight_decay}
        ]
        return [torch.optim.AdamW(groups, betas=BETAS, eps=1e-8, fused=True)]
    named = dict(model.named_parameters())
    named[EMBEDDING].requires_grad_(rates.embedding > 0)
    table = [named[EMBEDDING]] if table_optimizer == "adamw" and rates.embedding > 0 else []
    groups: list[dict] = [{"params": [*table, *(head.parameters() if head else ())], "lr": rates.embedding}]
    vectors = [weight for weight in named.values() if weight.ndim == 1] if with_blocks else [model.norm.weight]
    groups.append({"params": vectors, "lr": rates.vector})
    matrices = [weight for name, weight in named.items() if weight.ndim == 2 and name != EMBEDDING]
    if with_blocks and optimizer == "adamw":
        groups.append({"params": matrices, "lr": rates.matrix, "weight_decay": weight_decay})
    groups = [group for group in groups if group["params"]]
    optimizers: list[Optimizer] = [torch.optim.AdamW(groups, betas=BETAS, eps=1e-8, weight_decay=0.0, fused=True)]
    if with_blocks and optimizer == "muon":
        optimizers.append(Muon(matrices, lr=rates.matrix, weight_decay=weight_decay))
    if table_optimizer == "rowwise" and rates.embedding > 0:
        optimizers.append(RowwiseAdam([named[EMBEDDING]], lr=rates.embedding))
    for one in optimizers:
        for group in one.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_learning_rate(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Set the learning rate of every parameter group to `factor` times its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak"]


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale the gradients to a total norm of at most `limit`; return the norm before scaling."""
    return float(sharding.full(nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], limit)))


def require_finite_loss(loss: float, step: int, kept: Path) -> None:
    """Raise DivergedError, with the step and the last good checkpoint, unless the loss is finite."""
    if not math.isfinite(loss):
        raise DivergedError(f"step {step}: loss is {loss}; last good checkpoint: {kept}; try a lower learning rate")


def optimizer_tensors(optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """Return all tensors of the optimizers' states, named `<optimizer>.<parameter>.<key>`."""
    return {
        f"{number}.{parameter}.{key}": sharding.full(value).contiguous()
        for number, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizers(optimizers: Iterable[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Load the tensors of `optimizer_tensors` into the optimizers."""
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
        for name, value in tensors.items():
            owner, parameter, key = name.split(".", 2)
            if int(owner) == number:
                state.setdefault(int(parameter), {})[key] = sharding.like(value, parameters[int(parameter)])
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
