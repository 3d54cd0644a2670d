"""Describe the MLX device of this machine without loading a model."""

import sys

import mlx.core as mx

_GIGABYTE = 1e9


def describe_use() -> str:
    """Return a sentence on how models run on this machine."""
    if not mx.metal.is_available():
        where = "on a Mac it needs Apple Silicon" if sys.platform == "darwin" else "that takes a Mac"
        return f"no Metal here ({where}): it computes on the processor, slowly, which is good for checks only"
    device = mx.device_info()
    limit = f"{mx.get_memory_limit() / _GIGABYTE:.1f} GB"
    advised = device.get("max_recommended_working_set_size")
    recommended = f", {int(advised) / _GIGABYTE:.1f} GB recommended by Metal" if advised else ""
    return f"Metal on {device.get('device_name', 'an unknown GPU')}; arrays may take {limit}{recommended}"
