"""Gradients of a loss over the mean vectors of a large batch, which is encoded in several calls.

There are two ways to the same gradient. Directly: the activations of all calls are kept until the loss is known. With
GradCache (arXiv 2101.06983): the means are computed without gradients, the loss yields the gradient of each mean, and
each call is computed again to propagate it. Then only the activations of one call are in memory.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor

from pplx_edge.types import TokenRow
from pplx_quant.distributed import World
from pplx_quant.errors import ConfigError
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
    sharded: bool = False,
) -> float:
    """Return `loss(means)`, for float32 means `[N, D]` of all spans of `rows`, and add its gradient to the parameters.

    The calls depend only on the rows, so any number of processes computes the same means.
    """
    calls = plan_calls(rows, call_tokens)
    spans = _span_numbers(rows, calls)
    own_calls = world.share(len(calls))

    def run(call: int) -> Tensor:
        with autocast():
            return encode([rows[row] for row in calls[call]]).float()

    # The processes of a sharded model compute together, so all must have the same number of calls.
    idle = sharded and bool(own_calls) and len(own_calls) * world.size < len(calls)
    with torch.set_grad_enabled(not cached):
        own = [run(call) for call in own_calls]
        if idle and cached:
            run(own_calls[0])
    means = gather_means(own, [spans[call] for call in own_calls], sum(map(len, spans)), world)
    if not cached:
        value = loss(means)
        value.backward()
        return float(value.detach())
    means = means.detach().requires_grad_()
    value = loss(means)
    (gradient,) = torch.autograd.grad(value, means)
    for call in own_calls:
        run(call).backward(gradient[spans[call]])
    if idle:
        run(own_calls[0]).backward(torch.zeros_like(gradient[spans[own_calls[0]]]))
    return float(value.detach())


def gather_means(own: list[Tensor], places: list[Tensor], n_spans: int, world: World) -> Tensor:
    """Return all means `[N, D]`. Those of this process carry their gradient, those of other processes are constants."""
    if not own:
        raise ConfigError(f"a batch has fewer calls than there are processes ({world.size}); lower --call-tokens")
    local = torch.cat(own)
    order = torch.cat(places).to(local.device)
    empty = torch.zeros(n_spans, local.shape[1], dtype=local.dtype, device=local.device)
    if world.size == 1:
        return empty.index_copy(0, order, local)
    everything = world.sum(empty.index_copy(0, order, local.detach()))
    return everything.index_copy(0, order, local)


def _span_numbers(rows: Sequence[TokenRow], calls: list[list[int]]) -> list[Tensor]:
    """Return, for each call, the positions of its spans among the spans of all rows, int64."""
    first = np.cumsum([0, *(len(row.bounds) for row in rows)])
    return [torch.from_numpy(np.concatenate([np.arange(first[row], first[row + 1]) for row in call])) for call in calls]
