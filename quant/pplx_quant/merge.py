"""Merge two checkpoints by spherical linear interpolation (SLERP), tensor by tensor.

python -m pplx_quant merge --first DIR --second DIR --out DIR [--weight 0.5]

Each tensor is treated as one vector. Its direction is interpolated along the great circle from the first tensor to the
second (Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985), and its length linearly:

    u = a/|a|, v = b/|b|, θ = angle(u, v), t = weight
    merged = ((1−t)|a| + t|b|) · (sin((1−t)θ)·u + sin(tθ)·v) / sin θ

- Weight 0 gives the first checkpoint and weight 1 the second, exactly, as float32.
- For parallel tensors, sin(tθ)/sin θ tends to t, so only the length changes.
- A zero tensor has no direction. The other tensor keeps its direction and is scaled.
- For opposite tensors, no great circle is better than another. The merge is refused, and the error names the tensor.

Sums are computed in float64. Only one block of one tensor is in memory, so large models can be merged too.

Merge two models that were trained from the same checkpoint, for example a contextual one and one with hard negatives,
to keep some of the quality of each. Choose the weight by held-out questions.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from pplx_edge.errors import CheckpointError
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_quant.checkpoint import TOKENIZER_FILES, WEIGHTS, write_float32_weights, writing_checkpoint
from pplx_quant.errors import ConfigError
from pplx_quant.export import require_replaceable
from pplx_quant.options import option, required

OPPOSITE = 1e-4  # radians from 180°; below it, float32 rounding of the weights decides the great circle
BLOCK_ITEMS = 1 << 22
MAY_DIFFER = {"name", "contextual"}  # fields of the spec; the recipe merges a contextual checkpoint with a plain one

Pairs = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class MergeConfig:
    """Options of `merge`."""

    first: Path = required("First checkpoint.")
    second: Path = required("Second checkpoint, with the same sizes, RoPE and norm constants, and tokenizer.")
    out: Path = required("Directory to write the merged checkpoint to.")
    weight: float = option(0.5, "Weight of the second checkpoint, between 0 and 1.")

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"--weight {self.weight} must be in 0…1")
        if self.out.resolve() in (self.first.resolve(), self.second.resolve()):
            raise ConfigError(f"--out {self.out} is one of the checkpoints to merge; choose another directory")


def slerp(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """Return the interpolation of two tensors of one shape, float32. Raises CheckpointError if they are opposite."""
    factors = blend_factors(lambda: [(a, b)], weight)
    return blend(a, b, weight, factors)


def blend_factors(pairs: Pairs, weight: float) -> tuple[float, float]:
    """Return the factors of a and b in the merged tensor; `pairs()` yields blocks of both.

    Raises CheckpointError if the tensors are opposite.
    """
    lengths = [math.sqrt(sum(_square(pair[side]) for pair in pairs())) for side in (0, 1)]
    if weight in (0, 1) or 0 in lengths:
        return 1 - weight, weight
    theta = _angle(pairs, lengths)
    if theta > math.pi - OPPOSITE:
        raise CheckpointError(
            f"the checkpoints are opposite ({math.degrees(theta):.4f}°), so there is no interpolation between them; "
            "weight 0 or 1 keeps one of them"
        )
    length = (1 - weight) * lengths[0] + weight * lengths[1]
    shares = (share * np.sinc(share * theta / np.pi) / np.sinc(theta / np.pi) for share in (1 - weight, weight))
    first, second = (float(share * length / own) for share, own in zip(shares, lengths, strict=True))
    return first, second


def _angle(pairs: Pairs, lengths: list[float]) -> float:
    """Return the angle in 0…π between two directions, accurate near both ends (Kahan, 2006)."""
    apart = together = 0.0
    for a, b in pairs():
        u, v = a.astype(np.float64) / lengths[0], b.astype(np.float64) / lengths[1]
        apart, together = apart + _square(u - v), together + _square(u + v)
    return 2 * math.atan2(math.sqrt(apart), math.sqrt(together))


def _square(values: np.ndarray) -> float:
    flat = values.astype(np.float64).ravel()
    return float(flat @ flat)


def blend(a: np.ndarray, b: np.ndarray, weight: float, factors: tuple[float, float]) -> np.ndarray:
    """Return `factors[0] * a + factors[1] * b`, float32; for weight 0 or 1, a or b unchanged."""
    if weight in (0, 1):
        return (b if weight else a).astype(np.float32, copy=False)
    return (factors[0] * a.astype(np.float64) + factors[1] * b.astype(np.float64)).astype(np.float32)


def merge(config: MergeConfig) -> None:
    """Write the merged checkpoint atomically, float32 in the Hugging Face layout.

    Raises ConfigError, StorageError, or CheckpointError if the two do not fit together.
    """
    require_replaceable(config.out)
    first, second = Checkpoint.open(config.first), Checkpoint.open(config.second)
    require_same_model(first, second)

    def merged_blocks(name: str) -> Iterator[np.ndarray]:
        def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            return zip(tensor_blocks(first, name), tensor_blocks(second, name), strict=True)

        try:
            factors = blend_factors(pairs, config.weight)
        except CheckpointError as error:
            raise CheckpointError(f"tensor {name}: {error}") from error
        return (blend(a, b, config.weight, factors) for a, b in pairs())

    with writing_checkpoint(config.out, first.spec, config.first) as folder:
        write_float32_weights(folder / WEIGHTS, first.spec.tensor_shapes(), merged_blocks)
    shares = f"{1 - config.weight:g} of {config.first}, {config.weight:g} of {config.second}"
    print(f"{config.out}: {shares}", file=sys.stderr)


def tensor_blocks(checkpoint: Checkpoint, name: str) -> Iterator[np.ndarray]:
    """Yield a tensor in float32 blocks of whole rows, and a vector in one block."""
    shape = checkpoint.spec.tensor_shapes()[name]
    if len(shape) == 1:
        yield checkpoint.read(name)
        return
    n_rows = max(1, BLOCK_ITEMS // shape[1])
    for start in range(0, shape[0], n_rows):
        yield checkpoint.read_block(name, start, min(start + n_rows, shape[0]))


def require_same_model(first: Checkpoint, second: Checkpoint) -> None:
    """Raise CheckpointError, naming the difference, unless sizes, constants and tokenizer are equal."""
    for field in fields(first.spec):
        ours, theirs = getattr(first.spec, field.name), getattr(second.spec, field.name)
        if field.name not in MAY_DIFFER and ours != theirs:
            raise CheckpointError(f"{second.directory}: {field.name} is {theirs}, in {first.directory} it is {ours}")
    ours, theirs = (_tokenizer(checkpoint.directory) for checkpoint in (first, second))
    for part in sorted(ours.keys() | theirs.keys()):
        if ours.get(part) != theirs.get(part):
            raise CheckpointError(
                f"{second.directory}: another tokenizer than in {first.directory} ({part} differs); "
                "only models with the same tokenizer can be merged"
            )


def _tokenizer(folder: Path) -> dict:
    path = folder / TOKENIZER_FILES[0]
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a tokenizer ({error})") from error
