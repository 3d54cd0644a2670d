"""What MLX says of the machine, without opening a model."""

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, slots=True, kw_only=True)
class MlxDevice:
    """Whether there is Metal, what the device calls itself (empty without Metal), and what MLX lets arrays take.

    `recommended_bytes` is what Metal advises a process to use at most, None without Metal.
    """

    metal: bool
    name: str
    memory_limit_bytes: int
    recommended_bytes: int | None


def describe_device() -> MlxDevice:
    """The device that models are run on by default."""
    metal = mx.metal.is_available()
    facts = mx.device_info() if metal else {}
    recommended = facts.get("max_recommended_working_set_size")
    return MlxDevice(
        metal=metal,
        name=str(facts.get("device_name", "")),
        memory_limit_bytes=mx.get_memory_limit(),
        recommended_bytes=None if recommended is None else int(recommended),
    )
