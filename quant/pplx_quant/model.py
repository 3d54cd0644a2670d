"""A new encoder for training, and its vectors.

A fresh model starts as a weighted bag of words: the blocks add nothing (their output projections are zero), tokens
that differ only in case or in a leading space share a vector, and frequent tokens are short.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from pplx_edge.models.qwen3_torch import Qwen3Encoder, mean_pool
from pplx_edge.spec import ModelSpec

INITIAL_NORM = 3.0
SMOOTHING = 1e-3


def new_model(spec: ModelSpec, tokenizer: Tokenizer, counts: np.ndarray, seed: int) -> Qwen3Encoder:
    """A float32 encoder that starts as a bag of words; `counts` `[vocab]` are token counts of a training sample."""
    torch.manual_seed(seed)
    model = Qwen3Encoder(spec)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
            elif weight.ndim == 2:
                weight.normal_(0, weight.shape[1] ** -0.5)
        model.embed_tokens.weight.copy_(lexical_table(tokenizer, spec.hidden_size, counts, seed))
        model.norm.weight.fill_(INITIAL_NORM)
        model.norm.weight[-1] = 0.0
    return model


def lexical_table(tokenizer: Tokenizer, dim: int, counts: np.ndarray, seed: int) -> Tensor:
    """Initial embedding table, float32 `[vocab, dim]`: a random direction for each word form, folded in case.

    RMS normalisation gives every token the same length, so a token's weight a / (a + frequency) is set through the
    last component, which takes the rest of the length and which the final norm does not let through.
    """
    frequencies = counts / max(1, counts.sum())
    weights = SMOOTHING / (SMOOTHING + frequencies)
    table = np.empty((tokenizer.get_vocab_size(), dim), np.float32)
    for token in range(len(table)):
        form = tokenizer.decode([token], skip_special_tokens=False).strip().casefold() or f"<{token}>"
        direction = np.random.default_rng(_form_seed(form, seed)).standard_normal(dim - 1)
        direction *= (dim - 1) ** 0.5 / np.linalg.norm(direction)
        table[token, :-1] = weights[token] * direction
        table[token, -1] = (dim * (1 - weights[token] ** 2)) ** 0.5
    return torch.from_numpy(table)


def _form_seed(form: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{form}".encode(), digest_size=8).digest(), "little")


def bag_means(model: Qwen3Encoder, rows: Sequence[np.ndarray]) -> Tensor:
    """Means `[B, D]` of the model without its blocks: normalised token embeddings averaged over each row."""
    table = model.norm(model.embed_tokens.weight)
    ids, offsets = flatten(rows)
    return F.embedding_bag(ids, table, offsets, mode="mean")


def encoder_means(model: Qwen3Encoder, rows: Sequence[np.ndarray], max_tokens: int) -> Tensor:
    """Means `[B, D]` float32 of the whole model, in the order of `rows`.

    Rows are sorted by length and cut into calls of at most `max_tokens` tokens, padding included.
    """
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    groups = token_groups(order, rows, max_tokens)
    means = torch.cat([_padded_means(model, [rows[row] for row in group]) for group in groups])  # [B, D], by length
    inverse = torch.empty(len(rows), dtype=torch.int64)
    inverse[torch.tensor(order)] = torch.arange(len(rows))
    return means[inverse]


def _padded_means(model: Qwen3Encoder, rows: Sequence[np.ndarray]) -> Tensor:
    ids, mask = pad(rows)
    return mean_pool(model(ids, mask), mask)


def token_groups(order: Sequence[int], rows: Sequence[np.ndarray], max_tokens: int) -> list[list[int]]:
    """Row numbers of `order` (by ascending length) in runs whose padded size stays within `max_tokens`."""
    groups: list[list[int]] = [[]]
    for row in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(rows[row]) > max_tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def pad(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 `[B, T]`, padded on the right with id 0."""
    longest = max(len(row) for row in rows)
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def flatten(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """All ids in one int64 vector, and the offset at which each row starts."""
    lengths = [len(row) for row in rows]
    offsets = np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(np.int64)
    return torch.from_numpy(np.concatenate(rows).astype(np.int64)), torch.from_numpy(offsets)
