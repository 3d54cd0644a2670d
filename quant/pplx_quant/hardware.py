"""The device of a process, and the number format that is fast on it."""

import os
from functools import lru_cache

import torch

from pplx_quant.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")


def choose_device(name: str) -> torch.device:
    """Return the device of this process by the name of an option; `auto` prefers a GPU.

    Under torchrun, a process has the GPU of its local rank, and MPS is not available. Raises ConfigError if there is no
    such device.
    """
    alone = "WORLD_SIZE" not in os.environ
    available = {"cuda": torch.cuda.is_available(), "mps": alone and torch.backends.mps.is_available(), "cpu": True}
    chosen = next(kind for kind in available if available[kind]) if name == "auto" else name
    if not available[chosen]:
        raise ConfigError(f"--device {name}: not available to this process; use --device auto")
    if chosen == "cuda":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    return torch.device(chosen)


def uses_bfloat16(precision: str, device: torch.device) -> bool:
    """Return True if a precision means bfloat16 autocast on a device; `auto` does where bfloat16 is fast."""
    return has_fast_bfloat16(device.type) if precision == "auto" else precision == "bfloat16"


@lru_cache
def has_fast_bfloat16(device_type: str) -> bool:
    """Return True if a kind of device multiplies bfloat16 natively. Others are up to 20 times slower with it."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    features = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
