"""The order of attention heads in converted weights."""

import numpy as np

from pplx_edge.spec import ModelSpec


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
