"""Retrieval figures for held-out pairs, to compare runs without using a benchmark."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pplx_edge.types import TokenRow
from pplx_edge.vectors.codes import int8_codes, sign_codes
from pplx_edge.vectors.similarity import unit_vectors
from pplx_quant.corpus import PackedCorpus
from pplx_quant.errors import ConfigError
from pplx_quant.model import plan_calls, whole_rows

Encode = Callable[[Sequence[TokenRow]], Tensor]


def validate(
    packed: PackedCorpus,
    encode: Encode,
    groups: Sequence[str],
    limits: tuple[int, int],
    pool: int,
    call_tokens: int,
    seed: int,
) -> dict[str, float]:
    """Return nDCG@10 of the held-out queries of each group, `ndcg_<group>` and for binary vectors `binary_<group>`.

    The candidates are the positives of the queries and other positives of the group, `pool` in all. `limits` are the
    maximum tokens of a query and of a positive.
    """
    means = partial(_means, encode=encode, call_tokens=call_tokens)
    scores = {}
    for name in groups:
        queries, docs, own = _held_out(packed, means, name, limits, pool, seed)
        scores[f"ndcg_{name}"] = ndcg(unit_codes(queries, queries.shape[1]), unit_codes(docs, docs.shape[1]), own)
        signs, doc_signs = (sign_codes(part).astype(np.float32) for part in (queries, docs))
        scores[f"binary_{name}"] = ndcg(signs, doc_signs, own)
    return scores


def ndcg(queries: np.ndarray, docs: np.ndarray, own: np.ndarray) -> float:
    """Return nDCG@10 by inner product; `own` int64 `[Q]` is the positive of each query. A tie counts as half a rank."""
    scores = queries @ docs.T  # [Q, N]
    best = np.take_along_axis(scores, own[:, None], axis=1)
    ranks = (scores > best).sum(axis=1) + ((scores == best).sum(axis=1) - 1) / 2
    return float(np.where(ranks < 10, 1 / np.log2(ranks + 2.0), 0).mean())


def _held_out(
    packed: PackedCorpus,
    means: Callable[[list[np.ndarray]], np.ndarray],
    name: str,
    limits: tuple[int, int],
    pool: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means of held-out queries `[Q, D]` and of candidates `[N, D]`, and the positive of each query `[Q]`."""
    if name not in packed.groups:
        raise ConfigError(f"no group {name!r} to validate on; groups are {', '.join(packed.groups)}")
    members = packed.group == packed.groups.index(name)
    generator = np.random.default_rng(seed)
    asked = np.sort(generator.permutation(np.flatnonzero(members & packed.held_out))[:pool])
    others = generator.permutation(np.flatnonzero(members & ~packed.held_out))[: max(0, pool - len(asked))]
    candidates = np.unique(packed.pairs[np.concatenate([asked, others]), 1])  # texts
    if not len(asked):
        raise ConfigError(f"group {name!r} has no held-out pair to validate on; raise --held-out when packing")
    queries = means(packed.texts(packed.pairs[asked, 0], limits[0]))
    docs = means(packed.texts(candidates, limits[1]))
    return queries, docs, np.searchsorted(candidates, packed.pairs[asked, 1])


def _means(texts: list[np.ndarray], encode: Encode, call_tokens: int) -> np.ndarray:
    """Return the means of texts, float32 `[N, D]`."""
    rows = whole_rows(texts)
    found: dict[int, np.ndarray] = {}
    with torch.inference_mode():
        for call in plan_calls(rows, call_tokens):
            found |= zip(call, encode([rows[row] for row in call]).float().cpu().numpy(), strict=True)
    return np.stack([found[row] for row in range(len(rows))])


def unit_codes(means: np.ndarray, dim: int) -> np.ndarray:
    """Return the int8 codes of the first `dim` components, scaled to unit length, float32 `[N, dim]`."""
    return unit_vectors(int8_codes(means[:, :dim]))
