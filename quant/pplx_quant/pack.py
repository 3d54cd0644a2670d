"""Pairs as token ids on disk: tokenised once, mapped by every run.

python -m pplx_quant.pack --data DIR --tokenizer DIR --out DIR

The packed folder holds `ids.npy` (uint16, all texts end to end), `offsets.npy` (int64, one more than texts; text 2i is
query i and text 2i + 1 its positive), `keys.npy` (int64 `[N, 2]`, hashes of query and positive), `group.npy` (int16
`[N]`), `held_out.npy` (bool `[N]`) and `packed.json` (group names, counts of dropped rows, limits, tokenizer hash).
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from pplx_edge.errors import EdgeError
from pplx_quant.data import Pair, ReadReport, file_key, list_files, read_pairs
from pplx_quant.errors import ConfigError, DataError
from pplx_quant.options import parse_config
from pplx_quant.structure import structure_pairs
from pplx_quant.tokenizer import load_tokenizer

BATCH = 4096


@dataclass(frozen=True)
class PackConfig:
    """What is packed, and how."""

    data: Path
    tokenizer: Path
    out: Path
    max_query: int = 64
    max_positive: int = 256
    per_paragraph: int = 3
    held_out: float = 0.03
    seed: int = 1


@dataclass(frozen=True)
class PackedPairs:
    """A packed folder, mapped. Pairs are rows 0…N−1; `groups` names the values of `group`."""

    ids: np.ndarray
    offsets: np.ndarray
    keys: np.ndarray
    group: np.ndarray
    held_out: np.ndarray
    groups: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> "PackedPairs":
        """The packed pairs of a folder; DataError when a file is missing or they do not fit together."""
        try:
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r")
                for name in ("ids", "offsets", "keys", "group", "held_out")
            }
            groups = tuple(json.loads((folder / "packed.json").read_text())["groups"])
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder}: not a packed folder ({error}); run python -m pplx_quant.pack") from error
        packed = cls(**arrays, groups=groups)
        if len(packed.offsets) != 2 * len(packed.group) + 1 or packed.offsets[-1] != len(packed.ids):
            raise DataError(f"{folder}: its arrays disagree about the number of pairs; pack again")
        return packed

    def __len__(self) -> int:
        return len(self.group)

    def queries(self, rows: Iterable[int], max_tokens: int) -> list[np.ndarray]:
        """Ids of the queries of `rows`, each cut to `max_tokens`."""
        return [self._text(2 * row, max_tokens) for row in rows]

    def positives(self, rows: Iterable[int], max_tokens: int) -> list[np.ndarray]:
        """Ids of the positives of `rows`, each cut to `max_tokens`."""
        return [self._text(2 * row + 1, max_tokens) for row in rows]

    def _text(self, text: int, max_tokens: int) -> np.ndarray:
        start, stop = int(self.offsets[text]), int(self.offsets[text + 1])
        return self.ids[start : min(stop, start + max_tokens)]


class PairPacker:
    """Collects tokenised pairs and writes them as one packed folder."""

    def __init__(self, tokenizer: Tokenizer, config: PackConfig):
        if tokenizer.get_vocab_size() > 1 << 16:
            raise ConfigError(f"{tokenizer.get_vocab_size()} tokens do not fit uint16 ids")
        self.tokenizer, self.config = tokenizer, config
        self.ids: list[np.ndarray] = []
        self.lengths: list[int] = []
        self.keys: list[tuple[int, int]] = []
        self.group: list[int] = []
        self.groups: list[str] = []

    def add(self, name: str, pairs: Iterator[Pair]) -> int:
        """Tokenise the pairs of one group; returns how many had tokens on both sides."""
        before = len(self.group)
        self.groups.append(name)
        while batch := list(islice(pairs, BATCH)):
            texts = [text for pair in batch for text in (pair.query, pair.positive)]
            encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            for number, pair in enumerate(batch):
                self._append(pair, encoded[2 * number].ids, encoded[2 * number + 1].ids)
        return len(self.group) - before

    def _append(self, pair: Pair, query: list[int], positive: list[int]) -> None:
        query, positive = query[: self.config.max_query], positive[: self.config.max_positive]
        if not query or not positive:
            return
        self.ids.append(np.array(query + positive, np.uint16))
        self.lengths += [len(query), len(positive)]
        self.keys.append((text_key(pair.query), text_key(pair.positive)))
        self.group.append(len(self.groups) - 1)

    def write(self, folder: Path, dropped: dict[str, dict]) -> None:
        """Write the packed folder; `packed.json` comes last, so a folder without it is incomplete."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "packed.json").unlink(missing_ok=True)
        keys = np.array(self.keys, np.int64)
        # A passage is held out with all its questions, whichever file they stand in.
        held_out = (keys[:, 1].view(np.uint64) % 10_000) < round(10_000 * self.config.held_out)
        arrays = {
            "ids": np.concatenate(self.ids),
            "offsets": np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64),
            "keys": keys,
            "group": np.array(self.group, np.int16),
            "held_out": held_out,
        }
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        counts = np.bincount(arrays["group"], minlength=len(self.groups))
        summary = {
            "groups": self.groups,
            "pairs": dict(zip(self.groups, counts.tolist(), strict=True)),
            "dropped": dropped,
            "max_query": self.config.max_query,
            "max_positive": self.config.max_positive,
            "tokenizer_sha256": hashlib.sha256((self.config.tokenizer / "tokenizer.json").read_bytes()).hexdigest(),
        }
        (folder / "packed.json").write_text(json.dumps(summary, indent=1) + "\n")


def text_key(text: str) -> int:
    """A signed 64-bit hash of a text, blind to case and to the width of white space."""
    folded = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.blake2b(folded.encode(), digest_size=8).digest(), "little", signed=True)


def pack(config: PackConfig) -> None:
    """Read, tokenise and write all pairs of a data folder, and those made from the structure of its texts."""
    packer = PairPacker(load_tokenizer(config.tokenizer), config)
    dropped = {}
    for path in list_files(config.data, "pairs"):
        pairs, report = read_pairs(path)
        if report.n_dropped:
            dropped[path.name] = describe_dropped(report)
        _tell(file_key(path), packer.add(file_key(path), iter(pairs)), report.n_dropped)
    for name, structured in structure_pairs(config.data, config.per_paragraph, config.seed):
        _tell(name, packer.add(name, structured), 0)
    packer.write(config.out, dropped)


def describe_dropped(report: ReadReport) -> dict:
    """The rows a reader dropped, by reason, with the first line numbers."""
    return {"rows": report.n_rows, "dropped": report.dropped, "first_lines": report.lines}


def _tell(name: str, n_pairs: int, n_dropped: int) -> None:
    print(f"{name:32} {n_pairs:>9,} pairs" + (f", {n_dropped} rows dropped" if n_dropped else ""), file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Pack a data folder; returns the exit status."""
    try:
        pack(parse_config(PackConfig, argv, "Tokenise the pairs of a data folder once."))
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
