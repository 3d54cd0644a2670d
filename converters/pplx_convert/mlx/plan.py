"""Choose a weight format for each matrix: measure how sensitive each one is, then spend bytes where they help most.

The sensitivity of a matrix is the relative error of the states after its layer when only this matrix is quantized:
`|block(x; W') - block(x; W)|² / |block(x; W)|²`, summed over the tokens of the probe texts. Measuring it needs one
layer in memory, and one run of that layer per choice instead of one run of the whole model.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.models.mlx_quantization import WEIGHT_FORMATS, QuantizationPlan, WeightFormat, fits, quantized
from pplx_edge.models.mlx_weights import matrices
from pplx_edge.models.qwen3_numpy import block, embed
from pplx_edge.types import TokenRow
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_edge.weights.safetensors import n_bytes

Choice = WeightFormat | None  # None is bfloat16
CHOICES: tuple[Choice, ...] = (WEIGHT_FORMATS["q4"], WEIGHT_FORMATS["q8"], None)  # smallest first
_MEGABYTE = 1_000_000
Drift = Mapping[str, Mapping[Choice, float]]


def size_limited_plan(checkpoint: Checkpoint, rows: Sequence[TokenRow], max_mb: int | None) -> QuantizationPlan:
    """Return a plan with 4 bits per weight, and 8 or 16 where they reduce the error most per byte, within `max_mb`.

    If `max_mb` is None, the limit is halfway between the sizes with 4 and with 8 bits everywhere. Raises InputError if
    the model exceeds the limit even with 4 bits everywhere.
    """
    spec = checkpoint.spec
    sizes = {
        path: {choice: stored_bytes(shape, choice) for choice in _choices(shape)}
        for path, shape in matrices(spec).items()
    }
    least, eight = (sum(_size(size, choice) for size in sizes.values()) for choice in CHOICES[:2])
    floats = sum(2 * shape[0] for shape in spec.tensor_shapes().values() if len(shape) == 1)
    room = (least + eight) // 2 if max_mb is None else max_mb * _MEGABYTE - floats
    if room < least:
        needed = -(-(least + floats) // _MEGABYTE)
        raise InputError(f"max_mb {max_mb}: this model needs at least {needed} MB, with 4 bits everywhere")
    chosen = spend(sensitivity(checkpoint, rows), sizes, room)
    return plan_with_default(chosen)


def plan_with_default(chosen: Mapping[str, Choice]) -> QuantizationPlan:
    """Return the plan for chosen weight formats, with the most frequent one as its default."""
    quantized_formats = [choice for choice in chosen.values() if choice]
    if not quantized_formats:
        return QuantizationPlan()
    default = max(set(quantized_formats), key=quantized_formats.count)
    return QuantizationPlan(default, {path: choice for path, choice in chosen.items() if choice != default})


def spend(drift: Drift, sizes: Mapping[str, Mapping[Choice, int]], room: int) -> dict[str, Choice]:
    """Return a weight format for each matrix within a total size of `room` bytes.

    Starts with the smallest weight formats and repeatedly applies the upgrade that reduces the error most per byte,
    while an upgrade fits.
    """
    chosen = {path: min(size, key=lambda choice: size[choice]) for path, size in sizes.items()}
    room -= sum(sizes[path][choice] for path, choice in chosen.items())
    while True:
        raises = [
            ((drift[path][now] - drift[path][to]) / (sizes[path][to] - sizes[path][now]), path, to)
            for path, now in chosen.items()
            for to in sizes[path]
            if 0 < sizes[path][to] - sizes[path][now] <= room and drift[path][to] < drift[path][now]
        ]
        if not raises:
            return chosen
        _, path, to = max(raises, key=lambda option: option[0])
        room -= sizes[path][to] - sizes[path][chosen[path]]
        chosen[path] = to


def sensitivity(checkpoint: Checkpoint, rows: Sequence[TokenRow]) -> Drift:
    """Return the relative squared error of the states after a matrix's layer, for each matrix and weight format."""
    spec = checkpoint.spec
    states = embed(checkpoint, [row.ids for row in rows])
    drift: dict[str, dict[Choice, float]] = {"embed_tokens": {}}
    for choice in _choices((spec.vocab_size, spec.hidden_size)):
        drift["embed_tokens"][choice] = _strayed(states, [rounded(x, choice) for x in states])
    for layer in range(spec.n_layers):
        weights = checkpoint.layer(layer)
        after = [block(x, weights, spec) for x in states]
        for name, weight in weights.items():
            if weight.ndim == 2:
                path = f"layers.{layer}.{name.removesuffix('.weight')}"
                drift[path] = {}
                for choice in _choices(weight.shape):
                    other = weights | {name: rounded(weight, choice)}
                    drift[path][choice] = _strayed(after, [block(x, other, spec) for x in states])
        states = after
    return drift


def rounded(weight: np.ndarray, choice: Choice) -> np.ndarray:
    """Return a matrix after quantization and dequantization with a weight format, float32."""
    exact = mx.array(weight)
    if choice is None:
        return np.array(exact.astype(mx.bfloat16).astype(mx.float32))
    parts = quantized(exact, choice)
    found = mx.dequantize(
        parts["weight"],
        parts["scales"],
        parts.get("biases"),
        choice.group_size,
        choice.bits,
        mode=choice.mode,
    )
    return np.array(found.astype(mx.float32))


def stored_bytes(shape: tuple[int, ...], choice: Choice) -> int:
    """Return the size of a matrix on disk and in memory, in bytes."""
    if choice is None:
        return n_bytes("BF16", shape)
    groups = (shape[0], shape[1] // choice.group_size)
    scales = 2 * n_bytes("BF16", groups) if choice.mode == "affine" else n_bytes("U8", groups)
    return n_bytes("U32", (shape[0], shape[1] * choice.bits // 32)) + scales


def _size(sizes: Mapping[Choice, int], choice: Choice) -> int:
    """Return the size with a weight format, or as floats if the rows do not fit its groups."""
    return sizes.get(choice, sizes[None])


def _choices(shape: tuple[int, ...]) -> list[Choice]:
    return [choice for choice in CHOICES if choice is None or fits(choice, shape[1])]


def _strayed(exact: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Return the relative squared error `Σ|found - exact|² / Σ|exact|²` over all tokens."""
    moved = sum(float(np.square(b.astype(np.float64) - a).sum()) for a, b in zip(exact, found, strict=True))
    return moved / max(sum(float(np.square(a.astype(np.float64)).sum()) for a in exact), 1e-30)
