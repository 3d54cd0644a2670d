"""Sharding of a model over the processes of a run (FSDP2), for models whose training does not fit into one GPU.

Each process keeps its part of every parameter, gradient and optimizer state, and gathers a block when it computes it.
Gradients are summed, as without sharding, so the losses are those of one process. Checkpoints are those of an unsharded
run and can be continued with another number of processes.
"""

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from pplx_edge.models.qwen3_torch import Qwen3Encoder


def shard(model: Qwen3Encoder) -> None:
    """Shard a model over all processes, block by block."""
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Sum, because each process has the gradient of its own calls. Gloo has no other reduction.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor; for a sharded one, all processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, parameter: nn.Parameter | Tensor) -> Tensor:
    """Return a whole tensor sharded as a parameter of its shape is; other tensors are returned as they are."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    moved = value.to(parameter.device, dtype=torch.float32)
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements)
