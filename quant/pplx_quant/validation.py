"""Score a model on held-out pairs, and on folders in the layout of BEIR.

python -m pplx_quant validate --model DIR [--data PACKED --validate-on GROUP…] [--beir DIR…]

Prints one line of JSON: nDCG@10 with int8 vectors (`ndcg_<group>`, `ndcg_beir_<folder>`) and with binary ones
(`binary_<group>`), and the mean of the former.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from pplx_edge.types import TokenRow
from pplx_edge.vectors.codes import int8_codes, sign_codes
from pplx_edge.vectors.similarity import unit_vectors
from pplx_quant.checkpoint import read_model
from pplx_quant.corpus import PackedCorpus
from pplx_quant.errors import ConfigError, DataError
from pplx_quant.hardware import choose_device, uses_bfloat16
from pplx_quant.model import encoder_means, plan_calls, whole_rows
from pplx_quant.options import option, required
from pplx_quant.tokenizer import load_tokenizer

Encode = Callable[[Sequence[TokenRow]], Tensor]


@dataclass(frozen=True)
class ValidateConfig:
    """Options of `validate`."""

    model: Path = required("Checkpoint to score.")
    data: Path | None = option(None, "Packed file, for --validate-on.")
    validate_on: tuple[str, ...] = option((), "Groups to score held-out questions of.")
    pool: int = option(4000, "Number of candidates of a group.")
    beir: tuple[Path, ...] = option((), "Folders in the layout of BEIR.")
    max_query: int = option(48, "Cut queries to this many tokens.")
    max_positive: int = option(128, "Cut passages to this many tokens.")
    call_tokens: int = option(8192, "Maximum padded tokens in one call of the model.")
    device: str = option("auto", "Device: auto, cpu, cuda, mps.")
    precision: str = option("auto", "Precision of calls: float32, bfloat16, or auto: bfloat16 where it is fast.")
    seed: int = option(1, "Seed of the candidates.")

    def __post_init__(self) -> None:
        if bool(self.validate_on) != (self.data is not None):
            raise ConfigError("--data and --validate-on must be given together")
        if not self.validate_on and not self.beir:
            raise ConfigError("give --validate-on or --beir")


def validate_model(config: ValidateConfig) -> None:
    """Print the scores of a checkpoint."""
    device = choose_device(config.device)
    model = read_model(config.model).to(device).eval()
    encode, limits = partial(encoder_means, model), (config.max_query, config.max_positive)
    found: dict[str, float] = {}
    with torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(config.precision, device)):
        if config.data is not None:
            packed = PackedCorpus.open(config.data)
            packed.require_lengths(*limits)
            found = validate(packed, encode, config.validate_on, limits, config.pool, config.call_tokens, config.seed)
        for folder in config.beir:
            content, tokenizer = BeirFolder.read(folder), load_tokenizer(config.model)
            found[f"ndcg_beir_{folder.name}"] = validate_beir(content, tokenizer, encode, limits, config.call_tokens)
    figures = [score for name, score in found.items() if name.startswith("ndcg_")]
    found["mean"] = sum(figures) / max(1, len(figures))
    print(json.dumps({name: round(score, 4) for name, score in found.items()}))


def validate(
    packed: PackedCorpus,
    encode: Encode,
    groups: Sequence[str],
    limits: tuple[int, int],
    pool: int,
    call_tokens: int,
    seed: int,
) -> dict[str, float]:
    """Return nDCG@10 of the held-out queries of each group, `ndcg_<group>` and for binary vectors `binary_<group>`.

    The candidates are the positives of the queries and other positives of the group, `pool` in all. `limits` are the
    maximum tokens of a query and of a positive.
    """
    means = partial(_means, encode=encode, call_tokens=call_tokens)
    scores = {}
    for name in groups:
        queries, docs, own = _held_out(packed, means, name, limits, pool, seed)
        scores[f"ndcg_{name}"] = ndcg(unit_codes(queries, queries.shape[1]), unit_codes(docs, docs.shape[1]), own)
        signs, doc_signs = (sign_codes(part).astype(np.float32) for part in (queries, docs))
        scores[f"binary_{name}"] = ndcg(signs, doc_signs, own)
    return scores


def ndcg(queries: np.ndarray, docs: np.ndarray, own: np.ndarray) -> float:
    """Return nDCG@10 by inner product; `own` int64 `[Q]` is the positive of each query. A tie counts as half a rank."""
    scores = queries @ docs.T  # [Q, N]
    best = np.take_along_axis(scores, own[:, None], axis=1)
    ranks = (scores > best).sum(axis=1) + ((scores == best).sum(axis=1) - 1) / 2
    return float(np.where(ranks < 10, 1 / np.log2(ranks + 2.0), 0).mean())


def _held_out(
    packed: PackedCorpus,
    means: Callable[[list[np.ndarray]], np.ndarray],
    name: str,
    limits: tuple[int, int],
    pool: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means of held-out queries `[Q, D]` and of candidates `[N, D]`, and the positive of each query `[Q]`."""
    if name not in packed.groups:
        raise ConfigError(f"no group {name!r} to validate on; groups are {', '.join(packed.groups)}")
    members = packed.group == packed.groups.index(name)
    generator = np.random.default_rng(seed)
    asked = np.sort(generator.permutation(np.flatnonzero(members & packed.held_out))[:pool])
    others = generator.permutation(np.flatnonzero(members & ~packed.held_out))[: max(0, pool - len(asked))]
    candidates = np.unique(packed.pairs[np.concatenate([asked, others]), 1])  # texts
    if not len(asked):
        raise ConfigError(f"group {name!r} has no held-out pair to validate on; raise --held-out when packing")
    queries = means(packed.texts(packed.pairs[asked, 0], limits[0]))
    docs = means(packed.texts(candidates, limits[1]))
    return queries, docs, np.searchsorted(candidates, packed.pairs[asked, 1])


def _means(texts: list[np.ndarray], encode: Encode, call_tokens: int) -> np.ndarray:
    """Return the means of texts, float32 `[N, D]`."""
    rows = whole_rows(texts)
    found: dict[int, np.ndarray] = {}
    with torch.inference_mode():
        for call in plan_calls(rows, call_tokens):
            found |= zip(call, encode([rows[row] for row in call]).float().cpu().numpy(), strict=True)
    return np.stack([found[row] for row in range(len(rows))])


def unit_codes(means: np.ndarray, dim: int) -> np.ndarray:
    """Return the int8 codes of the first `dim` components, scaled to unit length, float32 `[N, dim]`."""
    return unit_vectors(int8_codes(means[:, :dim]))


# ------------------------------------------------------------------------------------------------ BEIR


@dataclass(frozen=True)
class BeirFolder:
    """Passages, queries, and the relevance of passages to each query: `{passage: grade}` by place."""

    passages: list[str]
    queries: list[str]
    relevant: list[dict[int, float]]

    @classmethod
    def read(cls, folder: Path) -> "BeirFolder":
        """Read `corpus.jsonl`, `queries.jsonl` (or `.gz`) and the judgments.

        The judgments are `qrels.tsv` or `qrels/test.tsv`, `dev.tsv` or `train.tsv`, the first that exists. Queries
        without a relevant passage are left out. Raises DataError if a file is missing or malformed, or no query is
        left.
        """
        try:
            corpus, asked = (list(_json_rows(folder, name)) for name in ("corpus", "queries"))
            places = {row["_id"]: place for place, row in enumerate(corpus)}
            grades: dict[str, dict[int, float]] = {}
            names = ("qrels.tsv", "qrels/test.tsv", "qrels/dev.tsv", "qrels/train.tsv")
            path = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
            with path.open(encoding="utf-8", newline="") as stream:
                for query, passage, grade in list(csv.reader(stream, delimiter="\t"))[1:]:
                    if float(grade) > 0 and passage in places:
                        grades.setdefault(query, {})[places[passage]] = float(grade)
            asked = [row for row in asked if row["_id"] in grades]
            passages = [f"{row.get('title') or ''} {row['text']}".strip() for row in corpus]
            queries, relevant = [row["text"] for row in asked], [grades[row["_id"]] for row in asked]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: not a folder in the layout of BEIR ({error!r})") from error
        if not queries:
            raise DataError(f"{folder}: no query has a relevant passage")
        return cls(passages, queries, relevant)


def _json_rows(folder: Path, name: str) -> Iterator[dict]:
    zipped = folder / f"{name}.jsonl.gz"
    with gzip.open(zipped, "rb") if zipped.is_file() else (folder / f"{name}.jsonl").open("rb") as stream:
        yield from map(json.loads, stream)


def validate_beir(
    folder: BeirFolder, tokenizer: Tokenizer, encode: Encode, limits: tuple[int, int], call_tokens: int
) -> float:
    """Return the mean nDCG@10 of the queries with int8 vectors; `limits` are the tokens of a query and a passage."""
    vectors = []
    for texts, limit in ((folder.queries, limits[0]), (folder.passages, limits[1])):
        means = _means([row[:limit] for row in _tokens(tokenizer, texts)], encode, call_tokens)
        vectors.append(unit_codes(means, means.shape[1]))
    scores = vectors[0] @ vectors[1].T
    return float(np.mean([graded_ndcg(row, own) for row, own in zip(scores, folder.relevant, strict=True)]))


def _tokens(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Return the ids of texts; a text without tokens becomes token 0."""
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(item.ids or [0], np.int64) for item in encoded]


def graded_ndcg(scores: np.ndarray, relevant: dict[int, float]) -> float:
    """Return nDCG@10 of a query by scores `[N]`; `relevant` are the gains of passages. Ties go to the first."""
    discounts = 1 / np.log2(np.arange(2, 12))
    first = np.argsort(-scores, kind="stable")[:10]
    best = sorted(relevant.values(), reverse=True)[:10]
    gained = sum(relevant.get(int(place), 0.0) * discounts[rank] for rank, place in enumerate(first))
    return float(gained / (np.array(best) @ discounts[: len(best)]))
