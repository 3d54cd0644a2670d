"""Write the held-out pairs of a packed file as retrieval tasks, to fit what comes after training on.

python -m pplx_quant held-out --data PACKED --out DIR --groups qed tydiqa

Writes a folder in the layout of BEIR for each group: the held-out questions, the passages that answer them, and other
passages of the group up to `--pool`. The model has seen none of the right passages in training. The packed file must
have been made with `pack --keep-text`.
"""

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pplx_quant.corpus import PackedCorpus
from pplx_quant.errors import ConfigError, DataError
from pplx_quant.options import option, required


@dataclass(frozen=True)
class HeldOutConfig:
    """Options of `held-out`."""

    data: Path = required("Packed file, made with --keep-text.")
    out: Path = required("Folder to create.")
    groups: tuple[str, ...] = required("Groups to write.")
    questions: int = option(200, "Number of random held-out questions of a group.")
    pool: int = option(400, "Number of passages of a group, the right ones among them.")
    seed: int = option(1, "Seed of the random choices.")


def write_held_out(config: HeldOutConfig) -> None:
    """Write a folder for each group. Raises ConfigError for an unknown group or one without held-out pairs."""
    packed = PackedCorpus.open(config.data)
    if not packed.has_text:
        raise DataError(f"{config.data}: has tokens only, not the texts; pack again with --keep-text")
    if config.out.exists():
        raise ConfigError(f"{config.out} exists; name a new folder")
    for name in config.groups:
        if name not in packed.groups:
            raise ConfigError(f"no group {name!r} in {config.data}; groups are {', '.join(packed.groups)}")
        members = packed.group == packed.groups.index(name)
        generator = np.random.default_rng(config.seed)
        asked = generator.permutation(np.flatnonzero(members & packed.held_out))[: config.questions]
        if not len(asked):
            raise ConfigError(f"group {name!r} has no held-out pair; raise --held-out when packing")
        queries = np.unique(packed.pairs[asked, 0])
        own = members & packed.held_out & np.isin(packed.pairs[:, 0], queries)  # also their further passages
        right = np.unique(packed.pairs[own, 1])
        others = generator.permutation(np.setdiff1d(packed.pairs[members, 1], right))
        # A question may have passages that were not held out. They answer it too, so they cannot count as wrong.
        answers = packed.pairs[members & np.isin(packed.pairs[:, 0], queries), 1]
        others = others[~np.isin(others, answers)][: max(0, config.pool - len(right))]
        folder = config.out / name
        folder.mkdir(parents=True)
        _write_rows(folder / "corpus.jsonl.gz", _rows(packed, np.sort(np.concatenate([right, others]))))
        _write_rows(folder / "queries.jsonl.gz", _rows(packed, queries))
        judged = [f"{query}\t{passage}\t1" for query, passage in np.unique(packed.pairs[own], axis=0).tolist()]
        (folder / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n", encoding="utf-8")
        print(f"{folder}: {len(queries):,} questions, {len(right) + len(others):,} passages")


def _rows(packed: PackedCorpus, numbers: np.ndarray) -> Iterable[Mapping[str, str]]:
    return ({"_id": str(number), "text": packed.string(number)} for number in numbers.tolist())


def _write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    with gzip.GzipFile(path, "wb", mtime=0) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
