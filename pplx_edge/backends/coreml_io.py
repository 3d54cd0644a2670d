"""What a Core ML program takes and gives, and how a row of tokens becomes its inputs.

The converter authors programs with these names and shapes, the session feeds them, and the checks off a Mac go through
the same functions. Letters: T tokens that a function holds, n of them real, D dimensions, d width of a head.

Inputs are `inputs_embeds` float16 `[1, T, D]`, `key_bias` float16 `[1, 1, 1, T]`, added to the attention scores, and
`span_weights` float32 `[1, MAX_SPANS, T]`; the flexible program also takes the rotation of its positions. Outputs are
`token_states` float32 `[1, T, D]` and `span_means` float32 `[1, MAX_SPANS, D]`, the weights times the states, summed in
float32 within the program.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from pplx_edge.models.qwen3_numpy import rotary_angles
from pplx_edge.spec import ModelSpec

INPUT_EMBEDS = "inputs_embeds"
KEY_BIAS = "key_bias"
SPAN_WEIGHTS = "span_weights"
ROTARY_COS, ROTARY_SIN = "rotary_cos", "rotary_sin"
TOKEN_STATES = "token_states"
SPAN_MEANS = "span_means"

# Tokens of the fixed-length functions. What the Neural Engine runs has a fixed shape.
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
# Spans that are pooled within the program: as many chunks of 128 tokens as the longest function holds.
MAX_SPANS = 16
# Added to the scores of padding: far below any score, and no float16 overflow when a score is added to it.
MASKED = np.float16(-30000)

# The flexible program: one function for rows of any length up to its limit, for the graphics processor. Every length
# that was not there before costs it a preparation, so lengths are rounded up.
FLEXIBLE_FUNCTION = "main"
FLEXIBLE_LIMIT = 8192
_FLEXIBLE_STEP = 64

_FUNCTION_PREFIX = "tokens_"

Arrays = Mapping[str, np.ndarray]


def function_name(length: int) -> str:
    """What the function of rows of up to `length` tokens is called."""
    return f"{_FUNCTION_PREFIX}{length}"


def function_length(name: str) -> int:
    """The tokens that a function of that name holds."""
    return int(name.removeprefix(_FUNCTION_PREFIX))


def model_lengths(max_tokens: int) -> tuple[int, ...]:
    """The function lengths for a model: those within its limit, and the limit when it lies among them."""
    within = [length for length in LENGTHS if length <= max_tokens]
    return tuple(sorted({*within, min(max_tokens, LENGTHS[-1])}))


class Lengths(Protocol):
    """How long the rows are that a program takes."""

    @property
    def limit(self) -> int:
        """The longest row."""
        ...

    def fitting(self, n_tokens: int) -> int:
        """The length at which a row of `n_tokens`, at most the limit, is run."""
        ...

    def extra_inputs(self, length: int) -> dict[str, np.ndarray]:
        """Inputs that follow from the length alone."""
        ...


@dataclass(frozen=True, slots=True)
class FixedLengths:
    """Functions of fixed lengths: a row goes to the shortest that holds it."""

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
    """One function of any length: rows are rounded up to a multiple, and rotations of their positions go with them."""

    spec: ModelSpec

    @property
    def limit(self) -> int:
        return flexible_limit(self.spec.max_tokens)

    def fitting(self, n_tokens: int) -> int:
        return min(-(-n_tokens // _FLEXIBLE_STEP) * _FLEXIBLE_STEP, self.limit)

    def extra_inputs(self, length: int) -> dict[str, np.ndarray]:
        return dict(zip((ROTARY_COS, ROTARY_SIN), rotation(self.spec, length), strict=True))


def flexible_limit(max_tokens: int) -> int:
    """The longest row of the flexible program."""
    return min(max_tokens, FLEXIBLE_LIMIT)


def rotation(spec: ModelSpec, length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of the angles of the first positions, float16 `[1, T, 1, d/2]`."""
    angles = rotary_angles(length, spec)[None, :, None, :]
    return np.cos(angles).astype(np.float16), np.sin(angles).astype(np.float16)


def row_inputs(embeds: np.ndarray, length: int, bounds: Sequence[tuple[int, int]] = ()) -> dict[str, np.ndarray]:
    """The inputs of a function of `length` tokens, from the embedded row `[n, D]`, n from 1 to `length`.

    `bounds` are the `[start, stop)` of up to MAX_SPANS spans; the weights of empty and of absent ones are zeros.
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
