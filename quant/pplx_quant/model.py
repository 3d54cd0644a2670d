"""A new encoder for training, and the mean vectors of an encoder.

A new model starts as a weighted bag of words: the blocks add nothing because their output projections are zero, tokens
that differ only in case or in a leading space share a direction, and frequent tokens have short vectors.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.spec import ModelSpec
from pplx_edge.types import TokenRow
from pplx_quant.fake_quant import embedding_table

CALL_TOKENS = 8192
INITIAL_NORM = 3.0
SMOOTHING = 1e-3
TEACHER_LENGTH = 2.0  # of the teacher vector of a word, relative to its random components


def new_model(
    spec: ModelSpec,
    tokenizer: Tokenizer,
    counts: np.ndarray,
    seed: int,
    words: tuple[np.ndarray, np.ndarray] | None = None,
) -> Qwen3Encoder:
    """Return a float32 encoder that starts as a bag of words; `counts` `[vocab]` are token counts of training data.

    `words` are token ids `[L]` and their teacher vectors `[L, W]`, which become the directions of these tokens.
    """
    model = new_encoder(spec, seed)
    with torch.no_grad():
        model.embed_tokens.weight.copy_(lexical_table(tokenizer, spec.hidden_size, counts, seed, words))
        model.norm.weight.fill_(INITIAL_NORM)
        model.norm.weight[-1] = 0.0
    return model


def new_encoder(spec: ModelSpec, seed: int) -> Qwen3Encoder:
    """Return a float32 encoder with random weights, whose blocks add nothing yet."""
    torch.manual_seed(seed)
    model = Qwen3Encoder(spec)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
            elif weight.ndim == 2:
                weight.normal_(0, weight.shape[1] ** -0.5)
    return model


def lexical_table(
    tokenizer: Tokenizer,
    dim: int,
    counts: np.ndarray,
    seed: int,
    words: tuple[np.ndarray, np.ndarray] | None = None,
) -> Tensor:
    """Return the initial embedding table, float32 `[vocab, dim]`: a random direction for each case-folded word form.

    A token of `words` gets its teacher vector in the first components, and its random direction in the others.

    RMS normalization gives every token the same length. So the weight a / (a + frequency) of a token is set by the last
    component, which contains the rest of the length and which the final norm sets to zero.
    """
    frequencies = counts / max(1, counts.sum())
    weights = SMOOTHING / (SMOOTHING + frequencies)
    table = np.empty((tokenizer.get_vocab_size(), dim), np.float32)
    known = dict(zip(words[0].tolist(), words[1], strict=True)) if words is not None else {}
    for token, direction in enumerate(_random_directions(tokenizer, dim - 1, seed)):
        if token in known:
            width = min(len(known[token]), dim - 1)
            rest = direction[width:]
            direction[:width] = known[token][:width] * (TEACHER_LENGTH * np.linalg.norm(rest) if len(rest) else 1)
        direction *= (dim - 1) ** 0.5 / np.linalg.norm(direction)
        table[token, :-1] = weights[token] * direction
        table[token, -1] = (dim * (1 - weights[token] ** 2)) ** 0.5
    return torch.from_numpy(table)


def form_directions(tokenizer: Tokenizer, dim: int, seed: int) -> np.ndarray:
    """Return unit vectors float32 `[vocab, dim]`, a random direction for each case-folded word form."""
    return np.stack([row / np.linalg.norm(row) for row in _random_directions(tokenizer, dim, seed)]).astype(np.float32)


def _random_directions(tokenizer: Tokenizer, dim: int, seed: int) -> Iterator[np.ndarray]:
    for token in range(tokenizer.get_vocab_size()):
        form = tokenizer.decode([token], skip_special_tokens=False).strip().casefold() or f"<{token}>"
        yield np.random.default_rng(_form_seed(form, seed)).standard_normal(dim)


def _form_seed(form: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{form}".encode(), digest_size=8).digest(), "little")


def bag_means(model: Qwen3Encoder, rows: Sequence[TokenRow]) -> Tensor:
    """Return the means `[N, D]` of the model without its blocks: normalized embeddings averaged over each span."""
    table = model.norm(embedding_table(model.embed_tokens))
    ids, offsets = flatten([row.ids[start:stop] for row in rows for start, stop in row.bounds])
    return F.embedding_bag(ids.to(table.device), table, offsets.to(table.device), mode="mean")


def encoder_means(model: Qwen3Encoder, rows: Sequence[TokenRow]) -> Tensor:
    """Return the means float32 `[N, D]` of the spans of rows, in one call of the model, padded to the longest row.

    The mean of an empty span is zero.
    """
    ids, mask = pad([row.ids for row in rows])
    device = model.embed_tokens.weight.device
    states = model(ids.to(device), None if mask.all() else mask.to(device)).float()  # [B, T, D]
    return pool_spans(states, rows)


def pool_spans(states: Tensor, rows: Sequence[TokenRow]) -> Tensor:
    """Return the means `[N, D]` of the spans of right-padded rows with states `[B, T, D]`, in their dtype."""
    width = states.shape[1]
    spans = [(number * width + start, stop - start) for number, row in enumerate(rows) for start, stop in row.bounds]
    lengths = np.array([length for _, length in spans])
    places = np.concatenate([np.arange(start, start + length) for start, length in spans])
    owners = torch.from_numpy(np.repeat(np.arange(len(spans)), lengths)).to(states.device)
    tokens = states.flatten(0, 1)[torch.from_numpy(places).to(states.device)]
    sums = torch.zeros(len(spans), states.shape[2], dtype=states.dtype, device=states.device)
    sums = sums.index_add(0, owners, tokens)
    return sums / torch.from_numpy(np.maximum(lengths, 1)).to(states)[:, None]


def whole_rows(texts: Sequence[np.ndarray]) -> list[TokenRow]:
    """Return rows with a single span that covers the whole text."""
    return [TokenRow(ids, ((0, len(ids)),)) for ids in texts]


def plan_calls(rows: Sequence[TokenRow], max_tokens: int) -> list[list[int]]:
    """Divide rows, sorted by length, into calls whose padded size is at most `max_tokens`, or of a single row.

    Return the row numbers of each call.
    """
    groups: list[list[int]] = [[]]
    for row in sorted(range(len(rows)), key=lambda row: len(rows[row])):
        if groups[-1] and (len(groups[-1]) + 1) * len(rows[row]) > max_tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def pad(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return ids and mask, int64 `[B, T]`, padded on the right with id 0."""
    longest = max(len(row) for row in rows)
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def flatten(rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Return all ids as one int64 vector, and the offset of each row."""
    offsets = np.cumsum([0, *(len(row) for row in rows[:-1])])
    return torch.from_numpy(np.concatenate(rows).astype(np.int64)), torch.from_numpy(offsets)


def encode_means(model: Qwen3Encoder, tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> np.ndarray:
    """Return the means float32 `[N, D]` of texts, each cut to `max_tokens`; zeros for an empty text."""
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    rows = [np.array(item.ids[:max_tokens], np.int64) for item in encoded]
    filled = [number for number, row in enumerate(rows) if len(row)]
    means = np.zeros((len(texts), model.spec.dim), np.float32)
    if filled:
        with torch.inference_mode():
            found = whole_rows([rows[number] for number in filled])
            for call in plan_calls(found, CALL_TOKENS):
                means[[filled[row] for row in call]] = encoder_means(model, [found[row] for row in call]).numpy()
    return means
