"""The inputs and outputs of Core ML programs, and the conversion of a row of tokens to inputs.

The converter writes programs with these names and shapes, the session runs them, and the tests on machines other than
Macs use the same functions. Letters in shapes: T tokens of a function, n of them real, D dimensions, d head width.

The inputs are `inputs_embeds` float16 `[1, T, D]`, `key_bias` float16 `[1, 1, 1, T]`, which is added to the attention
scores, and `span_weights` float32 `[1, MAX_SPANS, T]`. The session passes all of them as float32 arrays, which
coremltools hands to Core ML unchanged; it would copy float16 arrays to float32 ones.
The outputs are `token_states` float32 `[1, T, D]` and `span_means` float32 `[1, MAX_SPANS, D]`, the product of weights
and states, accumulated in float32 within the program.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from pplx_edge.models.rotary import rotary_tables
from pplx_edge.spec import ModelSpec

INPUT_EMBEDS = "inputs_embeds"
KEY_BIAS = "key_bias"
SPAN_WEIGHTS = "span_weights"
TOKEN_STATES = "token_states"
SPAN_MEANS = "span_means"

# Lengths of the functions, in tokens. The Neural Engine requires fixed shapes.
LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)
# The default limit: on the Neural Engine, 2,048 tokens take 13 times as long as 512.
USUAL_LIMIT = 512
# The largest weight file that the compiler of the Neural Engine accepts.
ANE_WEIGHT_BYTES = 2**31
_BITS = {"coreml-fp16": 16, "coreml-int8": 8, "coreml-pal8": 8, "coreml-pal6": 6, "coreml-pal4": 4}
# Spans that the program pools itself: the number of 128-token chunks in the longest function.
MAX_SPANS = 16
# Added to the attention scores of padding: far below any score, but without overflow in float16.
MASKED = np.float16(-30000)

# The forms of attention in a package: one fused operator, or its parts for systems that compile the fused one badly.
# The name of a function ends with its form unless that is the fused one.
FUSED, UNFUSED = "fused", "unfused"
FORMS = (FUSED, UNFUSED)

# The file with which a function is tested before its first use: token ids, uint32 `[N]`, and for several prefixes of
# them the mean state that the reference computes, float32 `[D]`.
PROBE_IDS = "ids"
PROBE_TOKENS = 255

_FUNCTION_PREFIX = "tokens_"
_INPUTS: dict[tuple[int, int], dict[str, np.ndarray]] = {}


def function_name(length: int, form: str = FUSED) -> str:
    """Return the name of the function for rows of up to `length` tokens with one form of attention."""
    return f"{_FUNCTION_PREFIX}{length}" + ("" if form == FUSED else f"_{form}")


def function_lengths(names: Iterable[str]) -> tuple[int, ...]:
    """Return the lengths in tokens of the functions with these names, each once, in ascending order."""
    return tuple(sorted({int(name.removeprefix(_FUNCTION_PREFIX).removesuffix(f"_{UNFUSED}")) for name in names}))


def model_lengths(max_tokens: int, longest: int = USUAL_LIMIT) -> tuple[int, ...]:
    """Return the function lengths for a model: those up to `longest` and its own limit, and the lower of the two."""
    limit = min(max_tokens, longest, LENGTHS[-1])
    return tuple(sorted({*(length for length in LENGTHS if length <= limit), limit}))


def probe_tokens(length: int) -> int:
    """Return the number of tokens that test a function: one less than fit in, so that it pads, and at most 255."""
    return min(max(1, length - 1), PROBE_TOKENS)


def probe_mean(n_tokens: int) -> str:
    """Return the name of the mean state of the first `n_tokens` tokens of the probe."""
    return f"mean_{n_tokens}"


def formats_for_ane(spec: ModelSpec) -> list[str]:
    """Return the formats whose weights of this model fit on the Neural Engine, the most precise first."""
    n_values = spec.n_layers * sum(prod(shape) for shape in spec.layer_shapes().values())
    return [name for name, bits in _BITS.items() if n_values * bits / 8 < ANE_WEIGHT_BYTES]


@dataclass(frozen=True, slots=True)
class FixedLengths:
    """The lengths of fixed-length functions; a row is padded to the shortest one that it fits in."""

    lengths: tuple[int, ...]

    @property
    def limit(self) -> int:
        return max(self.lengths)

    def fitting(self, n_tokens: int) -> int:
        return min(length for length in self.lengths if length >= n_tokens)


def rotation(spec: ModelSpec, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rotary cosines and sines of the first `length` positions, float16 `[1, T, 1, d/2]` each."""
    cos, sin = (table[None, :, None, :].astype(np.float16) for table in rotary_tables(length, spec))
    return cos, sin


def permanent_inputs(length: int, dim: int) -> dict[str, np.ndarray]:
    """Return the input arrays of this process for functions of `length` tokens, which are never freed.

    Core ML keeps input arrays for a second or so after a prediction and then releases them without holding Python's
    global lock, which corrupts memory if it held the last reference (coremltools pull requests 2827 and 2829).
    """
    return _INPUTS.setdefault((length, dim), empty_inputs(length, dim))


def empty_inputs(length: int, dim: int) -> dict[str, np.ndarray]:
    """Return input arrays of a function of `length` tokens, float32, for `fill_inputs`."""
    shapes = {INPUT_EMBEDS: (1, length, dim), KEY_BIAS: (1, 1, 1, length), SPAN_WEIGHTS: (1, MAX_SPANS, length)}
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def fill_inputs(inputs: Mapping[str, np.ndarray], embeds: np.ndarray, bounds: Sequence[tuple[int, int]] = ()) -> None:
    """Overwrite all values of input arrays for an embedded row `[n, D]`, n from 1 to the length of the function.

    `bounds` are the bounds `[start, stop)` of up to MAX_SPANS spans; empty and unused spans get zero weights.
    """
    n = len(embeds)
    padded, bias, weights = inputs[INPUT_EMBEDS][0], inputs[KEY_BIAS][0, 0, 0], inputs[SPAN_WEIGHTS][0]
    padded[:n], padded[n:] = embeds, 0
    bias[:n], bias[n:] = 0, MASKED
    weights[:] = 0
    for i, (start, stop) in enumerate(bounds):
        if stop > start:
            weights[i, start:stop] = np.float32(1) / np.float32(stop - start)


def row_inputs(embeds: np.ndarray, length: int, bounds: Sequence[tuple[int, int]] = ()) -> dict[str, np.ndarray]:
    """Return new input arrays of a function of `length` tokens for an embedded row; see `fill_inputs`."""
    inputs = empty_inputs(length, embeds.shape[1])
    fill_inputs(inputs, embeds, bounds)
    return inputs
