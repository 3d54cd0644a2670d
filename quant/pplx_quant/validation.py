"""How well held-out pairs are found again: what runs are compared by, without a look at any benchmark."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from pplx_quant.errors import ConfigError
from pplx_quant.evaluate import unit_codes
from pplx_quant.pack import PackedPairs

Encode = Callable[[Sequence[np.ndarray]], Tensor]
CALL_ROWS = 512


def validate(
    packed: PackedPairs, encode: Encode, groups: Sequence[str], max_query: int, max_positive: int, pool: int, seed: int
) -> dict[str, float]:
    """nDCG@10 per group of held-out queries among their positives and up to `pool` other positives of the group."""
    return {name: _validate_group(packed, encode, name, max_query, max_positive, pool, seed) for name in groups}


def _validate_group(
    packed: PackedPairs, encode: Encode, name: str, max_query: int, max_positive: int, pool: int, seed: int
) -> float:
    if name not in packed.groups:
        raise ConfigError(f"no group {name!r} to validate on; groups are {', '.join(packed.groups)}")
    members = packed.group == packed.groups.index(name)
    asked = np.flatnonzero(members & packed.held_out)
    others = np.flatnonzero(members & ~packed.held_out)
    generator = np.random.default_rng(seed)
    asked = np.sort(generator.permutation(asked)[:pool])
    others = np.sort(generator.permutation(others)[: max(0, pool - len(asked))])
    candidates = np.concatenate([asked, others])
    _, first = np.unique(packed.keys[candidates, 1], return_index=True)
    candidates = candidates[first]
    queries = _codes(encode, packed.queries(asked, max_query))
    docs = _codes(encode, packed.positives(candidates, max_positive))
    scores = queries @ docs.T  # [Q, N]
    correct = packed.keys[asked, 1][:, None] == packed.keys[candidates, 1][None, :]
    own = (scores * correct + np.where(correct, 0, -2)).max(axis=1, keepdims=True)
    ranks = (scores > own).sum(axis=1)
    return float(np.where(ranks < 10, 1 / np.log2(ranks + 2.0), 0).mean())


def _codes(encode: Encode, rows: list[np.ndarray]) -> np.ndarray:
    with torch.inference_mode():
        means = [encode(rows[start : start + CALL_ROWS]).float() for start in range(0, len(rows), CALL_ROWS)]
    values = torch.cat(means).numpy()
    return unit_codes(values, values.shape[1])
