"""The rows of the benchmark: their lengths, their token ids, and the operations that each needs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec

MIXED = "mixed"
DEFAULT_ROWS = ("1x16", "32x32", "32x128", "8x512", MIXED, "1x2048", "1x8192")
_MIXED_TEXTS, _MIXED_SHORTEST, _MIXED_LONGEST = 64, 16, 512
_SEED = 20260


@dataclass(frozen=True, slots=True)
class Row:
    """Inputs of these lengths, in tokens, encoded in one call."""

    name: str
    lengths: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        return sum(self.lengths)


def parse_row(name: str) -> Row:
    """Return the row of a name: `8x512` is 8 inputs of 512 tokens, `mixed` 64 inputs of 16 to 512 tokens."""
    if name == MIXED:
        rng = np.random.default_rng(_SEED)
        return Row(MIXED, tuple(int(n) for n in rng.integers(_MIXED_SHORTEST, _MIXED_LONGEST + 1, _MIXED_TEXTS)))
    match = re.fullmatch(r"([1-9]\d{0,4})[x×]([1-9]\d{0,5})", name)
    if match is None:
        raise InputError(f"unknown row {name!r}: write TEXTSxTOKENS, such as 8x512, or {MIXED}")
    n_texts, n_tokens = int(match[1]), int(match[2])
    return Row(f"{n_texts}x{n_tokens}", (n_tokens,) * n_texts)


def parse_rows(names: str) -> list[Row]:
    """Return the rows of a comma-separated list."""
    return [parse_row(name.strip()) for name in names.split(",")]


def row_ids(row: Row, vocab_size: int) -> list[np.ndarray]:
    """Seeded random token ids, int64 `[T]` each, in the order of the row's lengths."""
    rng = np.random.default_rng([_SEED, *row.lengths])
    return [rng.integers(0, vocab_size, n, dtype=np.int64) for n in row.lengths]


def linear_parameters(spec: ModelSpec) -> int:
    """Return the number of weights in linear layers; each costs one multiplication and one addition per token."""
    layer = spec.hidden_size * (2 * spec.q_size + 2 * spec.kv_size + 3 * spec.intermediate_size)
    return spec.n_layers * layer


def linear_operations(spec: ModelSpec, lengths: Sequence[int]) -> int:
    """Return the multiplications and additions in linear layers."""
    return 2 * linear_parameters(spec) * sum(lengths)


def attention_operations(spec: ModelSpec, lengths: Sequence[int]) -> int:
    """Return the multiplications and additions in `q @ kᵀ` and `scores @ v` of bidirectional attention."""
    return 4 * spec.n_layers * spec.q_size * sum(n * n for n in lengths)


def operations(spec: ModelSpec, lengths: Sequence[int]) -> int:
    """Return all multiplications and additions."""
    return linear_operations(spec, lengths) + attention_operations(spec, lengths)
