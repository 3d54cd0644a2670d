"""nDCG@10 of int8 vectors on folders in BEIR layout.

python -m pplx_quant.evaluate --model DIR [--dim N] TASK_DIR…
"""

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from pplx_edge.errors import EdgeError
from pplx_edge.models.qwen3_torch import Qwen3Encoder
from pplx_edge.quantize import int8_codes
from pplx_quant.checkpoint import read_model
from pplx_quant.errors import DataError
from pplx_quant.model import encoder_means, plan_calls, whole_rows
from pplx_quant.tokenizer import load_tokenizer

CUTOFF = 10
CALL_TOKENS = 8192


@dataclass(frozen=True)
class RetrievalTask:
    """Passages, queries, and the judged passages of each query with their grades."""

    name: str
    doc_ids: list[str]
    docs: list[str]
    query_ids: list[str]
    queries: list[str]
    judgements: dict[str, dict[str, int]]

    @classmethod
    def read(cls, folder: Path) -> "RetrievalTask":
        """The task in `corpus.jsonl.gz`, `queries.jsonl.gz` and `qrels.tsv`; DataError when one cannot be read."""
        try:
            docs, queries = _read_jsonl(folder / "corpus.jsonl.gz"), _read_jsonl(folder / "queries.jsonl.gz")
            judgements: dict[str, dict[str, int]] = {}
            with (folder / "qrels.tsv").open() as stream:
                for query, doc, grade in list(csv.reader(stream, delimiter="\t"))[1:]:
                    judgements.setdefault(query, {})[doc] = int(grade)
            judged = [row for row in queries if row["_id"] in judgements]
            return cls(
                folder.name,
                [row["_id"] for row in docs],
                [row["text"] for row in docs],
                [row["_id"] for row in judged],
                [row["text"] for row in judged],
                judgements,
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: not a task in BEIR layout ({error})") from error


def _read_jsonl(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def encode_means(model: Qwen3Encoder, tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int) -> np.ndarray:
    """Means float32 `[N, D]` of texts, each cut to `max_tokens`; an empty text gives zeros."""
    encoded = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    rows = [np.array(item.ids[:max_tokens], np.int64) for item in encoded]
    filled = [number for number, row in enumerate(rows) if len(row)]
    means = np.zeros((len(texts), model.spec.dim), np.float32)
    if filled:
        with torch.inference_mode():
            found = whole_rows([rows[number] for number in filled])
            for call in plan_calls(found, CALL_TOKENS):
                means[[filled[row] for row in call]] = encoder_means(model, [found[row] for row in call]).numpy()
    return means


def unit_codes(means: np.ndarray, dim: int) -> np.ndarray:
    """int8 codes of the first `dim` components, scaled to unit length: float32 `[N, dim]`."""
    codes = int8_codes(means[:, :dim]).astype(np.float32)
    return codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-9)


def ndcg_at_10(grades: Sequence[int], judged: Sequence[int]) -> float:
    """nDCG@10 of a ranking, given the grades of its hits in order and the grades of all judged passages."""
    ideal = _discounted_gain(sorted(judged, reverse=True))
    return _discounted_gain(grades) / ideal if ideal else 0.0


def _discounted_gain(grades: Sequence[int]) -> float:
    return sum(grade / np.log2(place + 2) for place, grade in enumerate(grades[:CUTOFF]))


def score_task(task: RetrievalTask, queries: np.ndarray, docs: np.ndarray) -> float:
    """Mean nDCG@10 over the queries, from unit vectors float32 `[Q, D]` and `[N, D]`."""
    scores = queries @ docs.T  # [Q, N]
    best = np.argsort(-scores, axis=1, kind="stable")[:, :CUTOFF]
    found = []
    for query, ranking in zip(task.query_ids, best, strict=True):
        judged = task.judgements[query]
        found.append(ndcg_at_10([judged.get(task.doc_ids[doc], 0) for doc in ranking], list(judged.values())))
    return float(np.mean(found))


def evaluate(folder: Path, tasks: Sequence[Path], dim: int | None, max_tokens: int) -> Iterator[tuple[str, float]]:
    """Task names and their nDCG@10 with the model in `folder`, one after the other."""
    model, tokenizer = read_model(folder).eval(), load_tokenizer(folder)
    for path in tasks:
        task = RetrievalTask.read(path)
        means = [encode_means(model, tokenizer, texts, max_tokens) for texts in (task.queries, task.docs)]
        yield task.name, score_task(task, *(unit_codes(side, dim or model.spec.dim) for side in means))


def main(argv: list[str] | None = None) -> int:
    """Print one line per task; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pplx_quant.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("tasks", type=Path, nargs="+", metavar="TASK_DIR")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dim", type=int, help="matryoshka: use the first N components")
    parser.add_argument("--max-tokens", type=int, default=512)
    args = parser.parse_args(argv)
    try:
        for name, score in evaluate(args.model, args.tasks, args.dim, args.max_tokens):
            print(f"{name}\t{score:.4f}", flush=True)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
