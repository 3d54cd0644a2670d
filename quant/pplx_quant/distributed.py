"""Training with one process or several: `torchrun --nproc-per-node N -m pplx_quant pair …`.

Every process draws the same batch, encodes its share of the calls and receives the means of all calls. So the loss, and
with it the negatives, do not depend on the number of processes. Gradients are summed.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pplx_quant.errors import TrainError
from pplx_quant.hardware import choose_device

Result = TypeVar("Result")
CPU = torch.device("cpu")
BUCKET_BYTES = 64 << 20


@dataclass(frozen=True)
class World:
    """The rank of this process among `size` processes, and the device that it computes on."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @classmethod
    def join(cls, device: str = "auto") -> "World":
        """Join the processes that torchrun started, with NCCL on GPUs and gloo elsewhere, or return a world of one."""
        chosen = choose_device(device)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if "WORLD_SIZE" not in os.environ:
            return cls(device=chosen)
        if not dist.is_initialized():
            on_gpu = chosen.type == "cuda"
            dist.init_process_group("nccl" if on_gpu else "gloo", device_id=chosen if on_gpu else None)
        return cls(dist.get_rank(), dist.get_world_size(), chosen)

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
        """Sum the gradients over all processes, in buckets; a missing gradient counts as zero."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
            if len(bucket) == 1:
                self.sum(bucket[0])
                continue
            total = self.sum(torch.cat([gradient.flatten() for gradient in bucket]))
            for gradient, part in zip(bucket, total.split([gradient.numel() for gradient in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def gather(self, value: Any) -> list:
        """Return the values that all processes passed, in the order of their ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def together(self, action: Callable[[], Result]) -> Result:
        """Return `action()`. If it fails in one process, raise an error in all of them, so that none keeps waiting."""
        error: Exception | None = None
        result: Any = None
        try:
            result = action()
        except Exception as caught:
            error = caught
        messages = self.gather("" if error is None else str(error) or type(error).__name__)
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message:
                raise TrainError(f"process {rank}: {message}")
        return result

    def wait(self) -> None:
        """Return when all processes have called this."""
        if self.size > 1:
            dist.barrier()

    @staticmethod
    def leave() -> None:
        """Leave the process group of `join`."""
        if dist.is_initialized():
            dist.destroy_process_group()


def buckets(tensors: Sequence[Tensor], limit: int = BUCKET_BYTES) -> Iterator[list[Tensor]]:
    """Yield runs of consecutive tensors of one type with at most `limit` bytes, or a single larger tensor."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > limit or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
