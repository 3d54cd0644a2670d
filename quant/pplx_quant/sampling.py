"""Which pairs make up the batch of a step: a function of seed and step, so a resumed run needs no loader state."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pplx_quant.errors import ConfigError
from pplx_quant.pack import PackedPairs


@dataclass(frozen=True)
class PairSampler:
    """Rows that may be drawn, by group, and the share of each group."""

    rows: tuple[np.ndarray, ...]
    shares: np.ndarray

    @classmethod
    def build(cls, packed: PackedPairs, exponent: float, boosts: Sequence[str]) -> "PairSampler":
        """A sampler over all rows that are not held out; a group's share is size ** `exponent` times its boost.

        A boost is `group=factor`; `group*=factor` speaks of all groups that begin so; factor 0 leaves a group out.
        Raises ConfigError for a boost that is malformed or fits no group.
        """
        trained = ~packed.held_out
        rows = tuple(np.flatnonzero((packed.group == number) & trained) for number in range(len(packed.groups)))
        shares = np.array([len(group) ** exponent if len(group) else 0.0 for group in rows])
        for boost in boosts:
            pattern, factor = parse_boost(boost)
            chosen = [fits(name, pattern) for name in packed.groups]
            if not any(chosen):
                raise ConfigError(f"boost {boost!r} fits no group; groups are {', '.join(packed.groups)}")
            shares[chosen] *= factor
        if not shares.sum():
            raise ConfigError("no pair is left to train on: every group is empty, held out or boosted by 0")
        return cls(rows, shares / shares.sum())

    def batch(self, step: int, size: int, block: int, seed: int) -> np.ndarray:
        """Rows int64 `[size]` of a step: runs of `block` rows of one group each, so that negatives are of its kind."""
        generator = np.random.default_rng((seed, step))
        drawn = []
        for start in range(0, size, block):
            group = self.rows[generator.choice(len(self.rows), p=self.shares)]
            wanted = min(block, size - start)
            drawn.append(generator.choice(group, wanted, replace=len(group) < wanted))
        return np.concatenate(drawn)


def parse_boost(boost: str) -> tuple[str, float]:
    """Pattern and factor of `pattern=factor`; ConfigError when it is not that or negative."""
    pattern, _, factor = boost.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = -1.0
    if not pattern or not value >= 0:
        raise ConfigError(f"boost {boost!r} is not GROUP=FACTOR with a factor of at least 0")
    return pattern, value


def fits(name: str, pattern: str) -> bool:
    """Whether a group goes by a pattern, which may end in `*`."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
