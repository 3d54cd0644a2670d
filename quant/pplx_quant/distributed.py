"""One process or several that train as one: `torchrun --nproc-per-node N -m pplx_quant.stages.pair …`.

Every process draws the same batch, encodes its share of the calls, and sees all means, so that the loss, and with it
the negatives, do not depend on how many processes there are. Gradients are summed.
"""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """This process's place among `size`."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> "World":
        """The world that torchrun set up (NCCL on GPUs, gloo elsewhere), or a world of one."""
        if "WORLD_SIZE" not in os.environ:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return torch.device("cuda", self.rank % torch.cuda.device_count()) if torch.cuda.is_available() else CPU

    @property
    def is_first(self) -> bool:
        """Whether this process writes logs and checkpoints."""
        return self.rank == 0

    def share(self, n_items: int) -> range:
        """The items of this process: every `size`-th."""
        return range(self.rank, n_items, self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Add up every gradient over all processes; a parameter that one process left out counts as zero there."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self.sum(parameter.grad)

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.size > 1:
            dist.barrier()

    def leave(self) -> None:
        """Take down what `join` set up."""
        if dist.is_initialized():
            dist.destroy_process_group()


CPU = torch.device("cpu")
