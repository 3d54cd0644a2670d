"""Describe the MLX device of this machine without loading a model."""

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, slots=True, kw_only=True)
class MlxDevice:
    """The default device of MLX.

    `metal` says whether Metal is available, and `name` is the device name, empty without Metal. `memory_limit_bytes` is
    MLX's limit for the size of all arrays. `recommended_bytes` is the maximum that Metal recommends for a process, None
    without Metal.
    """

    metal: bool
    name: str
    memory_limit_bytes: int
    recommended_bytes: int | None


def describe_device() -> MlxDevice:
    """Return the device that models run on by default."""
    metal = mx.metal.is_available()
    facts = mx.device_info() if metal else {}
    recommended = facts.get("max_recommended_working_set_size")
    return MlxDevice(
        metal=metal,
        name=str(facts.get("device_name", "")),
        memory_limit_bytes=mx.get_memory_limit(),
        recommended_bytes=None if recommended is None else int(recommended),
    )
