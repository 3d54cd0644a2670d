"""Mine hard negatives for the pairs of a packed file, to train with the `triplet` command.

python -m pplx_quant mine --data PACKED --model DIR --out DIR [--group GROUP …] [--cap GROUP=N …]

Searches the passages of all selected groups together with the queries of these groups. Writes `negatives.npy`, int32
`[N, n]`, to the directory of `--out`: for each pair of the packed file (also of groups that were not selected), the ids
of up to n texts, padded with -1. The vectors and the result are kept in `OUT.cache`, and used again while the model,
the texts and the options are the same.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pplx_quant.corpus import PackedCorpus
from pplx_quant.errors import ConfigError
from pplx_quant.hard_negatives import NEGATIVES, MiningOptions, cached_negatives
from pplx_quant.hardware import DEVICES, choose_device
from pplx_quant.options import option, required
from pplx_quant.sampling import matches, parse_factor

ENCODERS = ("auto", "runtime", "torch")


@dataclass(frozen=True)
class MineConfig:
    """Options of `mine`."""

    data: Path = required("Packed file.")
    model: Path = required("Checkpoint to encode the texts with.")
    out: Path = required("Directory for negatives.npy.")
    group: tuple[str, ...] = option(
        ("*",), "Groups to mine; * at the end of a name matches all groups that begin so.", metavar="GROUP"
    )
    cap: tuple[str, ...] = option((), "Mine for at most N random pairs of a group.", metavar="GROUP=N")
    max_query: int = option(48, "Cut queries to this many tokens.")
    max_positive: int = option(128, "Cut passages to this many tokens.")
    n: int = option(4, "Negatives for each query.")
    depth: int = option(50, "Sample from this many of the highest-ranking candidates.")
    margin: float = option(
        0.95,
        "Only passages with at most this share of the positive's cosine are candidates (a ratio; --margin of "
        "the training commands is a difference).",
    )
    sampled: bool = option(True, "Sample the negatives; --no-sampled takes the highest-ranking candidates.")
    encoder: str = option(
        "auto",
        "Encoder: runtime (onnx-int8 on the CPU, converted first), torch, or auto: torch if there is a CUDA GPU.",
    )
    device: str = option("auto", "Device of the torch encoder: auto, cpu, cuda, mps.")
    seed: int = option(1, "Seed of the sample.")

    def __post_init__(self) -> None:
        for name, allowed in (("encoder", ENCODERS), ("device", DEVICES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"--{name} {getattr(self, name)} must be one of {', '.join(allowed)}")

    def torch_device(self) -> torch.device | None:
        """Return the device of the torch encoder, or None for the runtime."""
        device = choose_device(self.device)
        return device if self.encoder == "torch" or (self.encoder == "auto" and device.type == "cuda") else None


def choose_pairs(packed: PackedCorpus, config: MineConfig) -> np.ndarray:
    """Return the rows of the pairs to mine for, int64 ascending, without held-out ones. Raises ConfigError if none."""
    limits = [parse_factor(cap) for cap in config.cap]
    chosen = []
    for number, name in enumerate(packed.groups):
        if any(matches(name, pattern) for pattern in config.group):
            rows = np.flatnonzero((packed.group == number) & ~packed.held_out)
            fitting = [int(value) for pattern, value in limits if matches(name, pattern)]
            chosen.append(np.random.default_rng((config.seed, number)).permutation(rows)[: (fitting or [None])[-1]])
    if not sum(map(len, chosen)):
        raise ConfigError(f"--group {' '.join(config.group)} selects no pair; groups are {', '.join(packed.groups)}")
    return np.sort(np.concatenate(chosen))


def mine(config: MineConfig) -> None:
    """Mine the negatives and write `negatives.npy`."""
    packed = PackedCorpus.open(config.data)
    packed.require_lengths(config.max_query, config.max_positive)
    rows = choose_pairs(packed, config)
    queries, query_of = np.unique(packed.pairs[rows, 0], return_inverse=True)  # a query may be in several pairs
    passages, passage_of = np.unique(packed.pairs[rows, 1], return_inverse=True)
    order = np.argsort(query_of, kind="stable")
    positives = np.split(passage_of[order], np.flatnonzero(np.diff(query_of[order])) + 1)
    options = MiningOptions(
        n=config.n, depth=config.depth, margin=config.margin, sampled=config.sampled, seed=config.seed
    )
    found = cached_negatives(
        config.out.with_name(config.out.name + ".cache"),
        config.model,
        packed.texts(queries, config.max_query),
        packed.texts(passages, config.max_positive),
        positives,
        options,
        device=config.torch_device(),
    )
    negatives = np.full((len(packed), config.n), -1, np.int32)
    negatives[rows] = np.where(found >= 0, passages[found], -1)[query_of]
    config.out.mkdir(parents=True, exist_ok=True)
    np.save(config.out / NEGATIVES, negatives)
    print(f"{len(rows):,} pairs, {(found >= 0).mean() * config.n:.2f} negatives per query", file=sys.stderr)
