"""SLERP of two checkpoints, tensor by tensor.

python -m pplx_quant.merge --first DIR --second DIR --out DIR [--weight 0.5]

Each tensor is taken as one long vector. Its direction goes along the great circle from the first to the second
(Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985), its length linearly:

    u = a/|a|, v = b/|b|, θ = angle(u, v), t = weight
    merged = ((1−t)|a| + t|b|) · (sin((1−t)θ)·u + sin(tθ)·v) / sin θ

- Weight 0 is the first checkpoint and 1 the second, bit for bit (in float32, whatever they are stored in).
- Parallel tensors: sin(tθ)/sin θ tends to t, so only the length changes.
- A zero tensor has no direction: the other one keeps its own and is scaled.
- Opposite tensors have no great circle of their own: every way round is as short, and the straight line passes through
  zero. Whatever was chosen would mean nothing, so the merge is refused and the tensor named.

Sums are made in float64, and only a block of one tensor is in memory, so a model of any size can be merged.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from pplx_edge.errors import CheckpointError, EdgeError
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_quant.checkpoint import TOKENIZER_FILES, WEIGHTS, write_float32_weights, writing_checkpoint
from pplx_quant.errors import ConfigError
from pplx_quant.export import require_replaceable
from pplx_quant.options import parse_config

OPPOSITE = 1e-4  # radians from half a turn; nearer, float32 rounding of the weights decides where the way leads
BLOCK_ITEMS = 1 << 22
MAY_DIFFER = {"name", "contextual"}  # of a spec: the recipe merges a contextual checkpoint with a plain one

Pairs = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class MergeConfig:
    """Two checkpoints of one shape and tokenizer, where to write, and the share of the second in 0…1."""

    first: Path
    second: Path
    out: Path
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"--weight {self.weight} must be in 0…1")
        if self.out.resolve() in (self.first.resolve(), self.second.resolve()):
            raise ConfigError(f"--out {self.out} is one of the checkpoints that are merged; choose another")


def slerp(a: np.ndarray, b: np.ndarray, weight: float) -> np.ndarray:
    """The tensor between two of one shape, float32. Raises CheckpointError when they are opposite."""
    factors = blend_factors(lambda: [(a, b)], weight)
    return blend(a, b, weight, factors)


def blend_factors(pairs: Pairs, weight: float) -> tuple[float, float]:
    """What to multiply a and b with so that their sum is the merged tensor; `pairs()` yields their blocks.

    Raises CheckpointError when the two are opposite.
    """
    lengths = [math.sqrt(sum(_square(pair[side]) for pair in pairs())) for side in (0, 1)]
    if weight in (0, 1) or 0 in lengths:
        return 1 - weight, weight
    theta = _angle(pairs, lengths)
    if theta > math.pi - OPPOSITE:
        raise CheckpointError(
            f"the checkpoints are opposite ({math.degrees(theta):.4f}°), there is no way between them; "
            "weight 0 or 1 keeps one of them"
        )
    length = (1 - weight) * lengths[0] + weight * lengths[1]
    shares = (share * np.sinc(share * theta / np.pi) / np.sinc(theta / np.pi) for share in (1 - weight, weight))
    first, second = (float(share * length / own) for share, own in zip(shares, lengths, strict=True))
    return first, second


def _angle(pairs: Pairs, lengths: list[float]) -> float:
    """Angle in 0…π between two directions, exact near both ends: 2 atan2(|u − v|, |u + v|) (Kahan, 2006)."""
    apart = together = 0.0
    for a, b in pairs():
        u, v = a.astype(np.float64) / lengths[0], b.astype(np.float64) / lengths[1]
        apart, together = apart + _square(u - v), together + _square(u + v)
    return 2 * math.atan2(math.sqrt(apart), math.sqrt(together))


def _square(values: np.ndarray) -> float:
    flat = values.astype(np.float64).ravel()
    return float(flat @ flat)


def blend(a: np.ndarray, b: np.ndarray, weight: float, factors: tuple[float, float]) -> np.ndarray:
    """`factors[0] * a + factors[1] * b`, float32; a or b itself where the weight is 0 or 1."""
    if weight in (0, 1):
        return (b if weight else a).astype(np.float32, copy=False)
    return (factors[0] * a.astype(np.float64) + factors[1] * b.astype(np.float64)).astype(np.float32)


def merge(config: MergeConfig) -> None:
    """Write the merged checkpoint, float32 in the Hugging Face layout, whole or not at all.

    Raises ConfigError, StorageError, or CheckpointError when the two do not fit together.
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


def tensor_blocks(checkpoint: Checkpoint, name: str) -> Iterator[np.ndarray]:
    """A tensor in float32 blocks of whole rows; a vector in one."""
    shape = checkpoint.spec.tensor_shapes()[name]
    if len(shape) == 1:
        yield checkpoint.read(name)
        return
    n_rows = max(1, BLOCK_ITEMS // shape[1])
    for start in range(0, shape[0], n_rows):
        yield checkpoint.read_block(name, start, min(start + n_rows, shape[0]))


def require_same_model(first: Checkpoint, second: Checkpoint) -> None:
    """Raise CheckpointError, saying what differs, unless sizes, constants and tokenizer are the same."""
    for field in fields(first.spec):
        ours, theirs = getattr(first.spec, field.name), getattr(second.spec, field.name)
        if field.name not in MAY_DIFFER and ours != theirs:
            raise CheckpointError(f"{second.directory}: {field.name} is {theirs}, in {first.directory} it is {ours}")
    ours, theirs = (_tokenizer(checkpoint.directory) for checkpoint in (first, second))
    for part in sorted(ours.keys() | theirs.keys()):
        if ours.get(part) != theirs.get(part):
            raise CheckpointError(
                f"{second.directory}: another tokenizer than in {first.directory} ({part} differs); "
                "models merge only over the same tokens"
            )


def _tokenizer(folder: Path) -> dict:
    path = folder / TOKENIZER_FILES[0]
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a tokenizer ({error})") from error


def main(argv: list[str] | None = None) -> int:
    """Merge and say where; returns the exit status."""
    try:
        config = parse_config(MergeConfig, argv, "Merge two checkpoints by spherical interpolation.")
        merge(config)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{config.out}: {1 - config.weight:g} of {config.first}, {config.weight:g} of {config.second}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
