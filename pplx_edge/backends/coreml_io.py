"""The inputs and outputs of Core ML programs, and the conversion of a row of tokens to inputs.

The converter writes programs with these names and shapes, the session runs them, and the tests on machines other than
Macs use the same functions. Letters in shapes: T tokens of a function, n of them real, D dimensions, d head width.

The inputs are `inputs_embeds` float16 `[1, T, D]`, `key_bias` float16 `[1, 1, 1, T]`, which is added to the attention
scores, and `span_weights` float32 `[1, MAX_SPANS, T]`; the flexible program also takes the rotary cosines and sines.
The outputs are `token_states` float32 `[1, T, D]` and `span_means` float32 `[1, MAX_SPANS, D]`, the product of weights
and states, accumulated in float32 within the program.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pplx_edge.models.rotary import rotary_tables
from pplx_edge.spec import ModelSpec

INPUT_EMBEDS = "inputs_embeds"
KEY_BIAS = "key_bias"
SPAN_WEIGHTS = "span_weights"
ROTARY_COS, ROTARY_SIN = "rotary_cos", "rotary_sin"
TOKEN_STATES = "token_states"
SPAN_MEANS = "span_means"

# Lengths of the fixed-length functions, in tokens. The Neural Engine requires fixed shapes.
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
# Spans that the program pools itself: the number of 128-token chunks in the longest function.
MAX_SPANS = 16
# Added to the attention scores of padding: far below any score, but without overflow in float16.
MASKED = np.float16(-30000)

# The flexible program has one function for rows of any length up to its limit, and is meant for the GPU. Lengths are
# rounded up because Core ML has to prepare the function for each new length.
FLEXIBLE_FUNCTION = "main"
FLEXIBLE_LIMIT = 8192
_FLEXIBLE_STEP = 64

_FUNCTION_PREFIX = "tokens_"

Arrays = Mapping[str, np.ndarray]


def function_name(length: int) -> str:
    """Return the name of the function for rows of up to `length` tokens."""
    return f"{_FUNCTION_PREFIX}{length}"


def function_length(name: str) -> int:
    """Return the length in tokens of the function with this name."""
    return int(name.removeprefix(_FUNCTION_PREFIX))


def model_lengths(max_tokens: int) -> tuple[int, ...]:
    """Return the function lengths for a model: those within its limit, and the limit itself if it is below 2,048."""
    within = [length for length in LENGTHS if length <= max_tokens]
    return tuple(sorted({*within, min(max_tokens, LENGTHS[-1])}))


class Lengths(Protocol):
    """The row lengths that a program accepts."""

    @property
    def limit(self) -> int:
        """The maximum length of a row, in tokens."""
        ...

    def fitting(self, n_tokens: int) -> int:
        """Return the padded length for a row of `n_tokens`, which must not exceed the limit."""
        ...

    def extra_inputs(self, length: int) -> dict[str, np.ndarray]:
        """Return the inputs that depend only on the length."""
        ...


@dataclass(frozen=True, slots=True)
class FixedLengths:
    """The lengths of fixed-length functions; a row is padded to the shortest one that it fits in."""

    lengths: tuple[int, ...]

    @property
    def limit(self) -> int:
        return max(self.lengths)

    def fitting(self, n_tokens: int) -> int:
        return min(length for length in self.lengths if length >= n_tokens)

    def extra_inputs(self, length: int) -> dict[str, np.ndarray]:
        return {}


@dataclass(frozen=True, slots=True)
class FlexibleLengths:
    """The lengths of the flexible function: multiples of 64 up to the limit. Rotary cosines and sines are inputs."""

    spec: ModelSpec

    @property
    def limit(self) -> int:
        return flexible_limit(self.spec.max_tokens)

    def fitting(self, n_tokens: int) -> int:
        return min(-(-n_tokens // _FLEXIBLE_STEP) * _FLEXIBLE_STEP, self.limit)

    def extra_inputs(self, length: int) -> dict[str, np.ndarray]:
        return dict(zip((ROTARY_COS, ROTARY_SIN), rotation(self.spec, length), strict=True))


def flexible_limit(max_tokens: int) -> int:
    """Return the maximum length of a row for the flexible program, in tokens."""
    return min(max_tokens, FLEXIBLE_LIMIT)


def rotation(spec: ModelSpec, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rotary cosines and sines of the first `length` positions, float16 `[1, T, 1, d/2]` each."""
    cos, sin = (table[None, :, None, :].astype(np.float16) for table in rotary_tables(length, spec))
    return cos, sin


def row_inputs(embeds: np.ndarray, length: int, bounds: Sequence[tuple[int, int]] = ()) -> dict[str, np.ndarray]:
    """Return the inputs of a function of `length` tokens for an embedded row `[n, D]`, n from 1 to `length`.

    `bounds` are the bounds `[start, stop)` of up to MAX_SPANS spans; empty and unused spans get zero weights.
    """
    n, dim = embeds.shape
    padded = np.zeros((1, length, dim), np.float16)
    padded[0, :n] = embeds
    bias = np.full((1, 1, 1, length), MASKED, np.float16)
    bias[..., :n] = 0
    weights = np.zeros((1, MAX_SPANS, length), np.float32)
    for i, (start, stop) in enumerate(bounds):
        if stop > start:
            weights[0, i, start:stop] = np.float32(1) / np.float32(stop - start)
    return {INPUT_EMBEDS: padded, KEY_BIAS: bias, SPAN_WEIGHTS: weights}
