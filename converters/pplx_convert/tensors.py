"""Read the tensors of a checkpoint in the order and in the pieces that the converters write."""

from collections.abc import Iterator

import numpy as np

from pplx_edge.spec import ModelSpec
from pplx_edge.weights.checkpoint import Checkpoint


def layer_tensors(checkpoint: Checkpoint, index: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the full name and the float32 values of each tensor of a layer, with attention heads grouped."""
    for name in checkpoint.spec.layer_shapes():
        full_name = f"layers.{index}.{name}"
        yield full_name, grouped_heads(name, checkpoint.read(full_name), checkpoint.spec)


def grouped_heads(name: str, weight: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """Return a q_proj or o_proj weight with heads reordered from (key head, group) to (group, key head).

    Other weights are returned unchanged.
    """
    split = (spec.n_kv_heads, spec.heads_per_kv, spec.head_dim)
    if name.endswith("q_proj.weight"):
        return weight.reshape(*split, spec.hidden_size).swapaxes(0, 1).reshape(weight.shape)
    if name.endswith("o_proj.weight"):
        return weight.reshape(spec.hidden_size, *split).swapaxes(1, 2).reshape(weight.shape)
    return weight
