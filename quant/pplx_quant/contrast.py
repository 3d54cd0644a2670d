"""Gradients of a loss over the means of many rows, call by call.

Two ways with the same gradient. Direct: all calls' activations are kept until the loss is known. Cached (GradCache,
arXiv 2101.06983): means are computed without gradients, the loss gives each mean its gradient, and each call is
computed once more to carry it on; memory is that of one call, so that batches of thousands fit.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from pplx_edge.types import TokenRow
from pplx_quant.distributed import World
from pplx_quant.model import plan_calls

Encode = Callable[[Sequence[TokenRow]], Tensor]
Autocast = Callable[[], AbstractContextManager]


def backward(
    rows: Sequence[TokenRow],
    loss: Callable[[Tensor], Tensor],
    encode: Encode,
    autocast: Autocast,
    world: World,
    call_tokens: int,
    cached: bool,
) -> float:
    """The value of `loss(means)`, float32 means `[N, D]` of all spans of `rows`; adds its gradient to the parameters.

    Calls are planned from the rows alone, so any number of processes computes the same means.
    """
    calls = plan_calls(rows, call_tokens)
    spans = _span_numbers(rows, calls)
    mine = world.share(len(calls))

    def run(call: int) -> Tensor:
        with autocast():
            return encode([rows[row] for row in calls[call]]).float()

    with torch.set_grad_enabled(not cached):
        own = [run(call) for call in mine]
    means = gather_means(own, [spans[call] for call in mine], sum(map(len, spans)), world)
    if not cached:
        value = loss(means)
        value.backward()
        return float(value.detach())
    means = means.detach().requires_grad_()
    value = loss(means)
    (gradient,) = torch.autograd.grad(value, means)
    for call in mine:
        run(call).backward(gradient[spans[call]])
    return float(value.detach())


def gather_means(own: list[Tensor], places: list[Tensor], n_spans: int, world: World) -> Tensor:
    """All means `[N, D]`: this process's carry their gradient, the other processes' are constants."""
    if not own:
        raise ValueError(f"{world.size} processes, but fewer calls in a batch; lower --call-tokens")
    local = torch.cat(own)
    order = torch.cat(places).to(local.device)
    empty = torch.zeros(n_spans, local.shape[1], dtype=local.dtype, device=local.device)
    if world.size == 1:
        return empty.index_copy(0, order, local)
    everything = world.sum(empty.index_copy(0, order, local.detach()))
    return everything.index_copy(0, order, local)


def _span_numbers(rows: Sequence[TokenRow], calls: list[list[int]]) -> list[Tensor]:
    """For each call, the numbers of its rows' spans among the spans of all rows, int64."""
    first = np.cumsum([0, *(len(row.bounds) for row in rows)])
    return [torch.from_numpy(np.concatenate([np.arange(first[row], first[row + 1]) for row in call])) for call in calls]
