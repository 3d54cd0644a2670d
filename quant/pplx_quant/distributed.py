"""Training with one process or several: `torchrun --nproc-per-node N -m pplx_quant pair …`.

Every process draws the same batch, encodes its share of the calls and receives the means of all calls. So the loss, and
with it the negatives, do not depend on the number of processes. Gradients are summed.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """The rank of this process among `size` processes."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> "World":
        """Join the processes that torchrun started, with NCCL on GPUs and gloo elsewhere, or return a world of one."""
        if "WORLD_SIZE" not in os.environ:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def device(self) -> torch.device:
        """The device that this process computes on."""
        return torch.device("cuda", self.rank % torch.cuda.device_count()) if torch.cuda.is_available() else CPU

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def share(self, n_items: int) -> range:
        """Return the items of this process: every `size`-th."""
        return range(self.rank, n_items, self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Sum the gradients over all processes; a missing gradient counts as zero."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self.sum(parameter.grad)

    def wait(self) -> None:
        """Return when all processes have called this."""
        if self.size > 1:
            dist.barrier()

    @staticmethod
    def leave() -> None:
        """Leave the process group of `join`."""
        if dist.is_initialized():
            dist.destroy_process_group()


CPU = torch.device("cpu")
