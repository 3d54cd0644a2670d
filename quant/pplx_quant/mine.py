"""Mined hard negatives for pairs of a packed file: what stage `triplet` trains with.

python -m pplx_quant.mine --data PACKED --model DIR --out DIR --group GROUP… [--cap GROUP=N …]

The passages of the named groups are searched with the queries of the same groups, by pplx-edge's own runtime. DIR gets
`negatives.npy`, int32 `[N, n]`: text numbers for each pair of the packed file, -1 where there is none.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pplx_quant.errors import ConfigError
from pplx_quant.mining import NEGATIVES, MiningOptions, mined_negatives
from pplx_quant.options import run_command
from pplx_quant.packed import PackedCorpus
from pplx_quant.sampling import fits, parse_factor


@dataclass(frozen=True)
class MineConfig:
    """Which groups are mined (patterns, `*` at the end), and how. `cap` holds the most pairs of a group."""

    data: Path
    model: Path
    out: Path
    group: tuple[str, ...] = ("*",)
    cap: tuple[str, ...] = ()
    max_query: int = 48
    max_positive: int = 128
    n: int = 4
    depth: int = 50
    margin: float = 0.95
    sampled: bool = True
    seed: int = 1


def choose_pairs(packed: PackedCorpus, config: MineConfig) -> np.ndarray:
    """Numbers of the pairs to be mined for, int64 ascending; held-out ones never. ConfigError when none is left."""
    limits = [parse_factor(cap) for cap in config.cap]
    chosen = []
    for number, name in enumerate(packed.groups):
        if any(fits(name, pattern) for pattern in config.group):
            rows = np.flatnonzero((packed.group == number) & ~packed.held_out)
            fitting = [int(value) for pattern, value in limits if fits(name, pattern)]
            chosen.append(np.random.default_rng((config.seed, number)).permutation(rows)[: (fitting or [None])[-1]])
    if not sum(map(len, chosen)):
        raise ConfigError(f"--group {' '.join(config.group)} leaves no pair; groups are {', '.join(packed.groups)}")
    return np.sort(np.concatenate(chosen))


def mine_pairs(config: MineConfig) -> np.ndarray:
    """The negatives int32 `[N, n]`, also written to `config.out / negatives.npy`."""
    packed = PackedCorpus.open(config.data)
    rows = choose_pairs(packed, config)
    queries, query_of = np.unique(packed.pairs[rows, 0], return_inverse=True)  # texts; a query may stand in many pairs
    passages, passage_of = np.unique(packed.pairs[rows, 1], return_inverse=True)
    order = np.argsort(query_of, kind="stable")
    positives = np.split(passage_of[order], np.flatnonzero(np.diff(query_of[order])) + 1)
    options = MiningOptions(
        n=config.n, depth=config.depth, margin=config.margin, sampled=config.sampled, seed=config.seed
    )
    found = mined_negatives(
        config.out.with_name(config.out.name + ".cache"),
        config.model,
        packed.texts(queries, config.max_query),
        packed.texts(passages, config.max_positive),
        positives,
        options,
    )
    negatives = np.full((len(packed), config.n), -1, np.int32)
    negatives[rows] = np.where(found >= 0, passages[found], -1)[query_of]
    config.out.mkdir(parents=True, exist_ok=True)
    np.save(config.out / NEGATIVES, negatives)
    print(f"{len(rows):,} pairs, {(found >= 0).mean() * config.n:.2f} negatives a query", file=sys.stderr)
    return negatives


def main(argv: list[str] | None = None) -> int:
    """Mine; returns the exit status."""
    return run_command(MineConfig, mine_pairs, "Mine hard negatives for pairs of a packed file.", argv)


if __name__ == "__main__":
    sys.exit(main())
