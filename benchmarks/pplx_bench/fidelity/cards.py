"""The figures: each candidate beside the reference on the same texts, and on retrieval tasks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pplx_bench.fidelity.candidates import Candidate
from pplx_bench.retrieval.beir import RetrievalTask
from pplx_convert.parity import ParityReport
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError, MissingExtra
from pplx_edge.text.batching import collate, plan_batches
from pplx_edge.vectors.codes import int8_codes, require_finite
from pplx_edge.vectors.similarity import similarity, top_k

TOP = 10
LEAST_TEXTS = 2 * TOP  # among fewer, most of all texts are the ten nearest
NDCG_PRECISIONS = ("int8", "binary")
EXTRA = "quality"
_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The texts to encode, the name of their source, and retrieval tasks. A text is truncated to `max_tokens`."""

    name: str
    texts: Sequence[str]
    tasks: Sequence[Path] = ()
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if not self.texts:
            raise InputError(f"{self.name}: no texts in it; at least one is needed, and {LEAST_TEXTS} for top-{TOP}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A candidate's figures; `parity` and `overlap` are None for the reference itself.

    `overlap` is the mean share of a text's ten nearest others that are the reference's too, by cosine of int8 codes;
    None for few texts. `retrieval` is nDCG@10 by task and precision.
    """

    candidate: Candidate
    device: str
    n_texts: int
    n_tokens: int
    n_cut: int
    parity: ParityReport | None = None
    overlap: float | None = None
    retrieval: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def ndcg(self, precision: str) -> float | None:
        """nDCG@10, the average over the tasks; None without tasks."""
        found = [scores[precision] for scores in self.retrieval.values()]
        return sum(found) / len(found) if found else None


def measure_cards(
    reference: Candidate, candidates: Sequence[Candidate], sample: Sample, report: Callable[[str], None]
) -> list[Card]:
    """A card each, the reference's first. One model is open at a time.

    Raises InputError for a text that a model cannot read, NumericalError naming the text whose vector is not finite,
    MissingExtra when there are tasks and what scores rankings is not installed.
    """
    tasks = _read_tasks(sample.tasks)
    cards, first, nearest = [], np.empty(0), np.empty(0)
    for candidate in (reference, *candidates):
        with candidate.open() as embedder:
            vectors = _vectors(embedder, sample, candidate.label)
            device = embedder.session.device
            report(f"{candidate.label}: {len(sample.texts):,} texts, {vectors.n_tokens:,} tokens ({device})")
            retrieval = {task.name: _retrieval(embedder, task, sample.max_tokens) for task in tasks}
        around = neighbours(int8_codes(vectors.means)) if len(sample.texts) >= LEAST_TEXTS else None
        parity = overlap = None
        if candidate is reference:
            first, nearest = vectors.means, around
        else:
            parity = ParityReport.compare(first, vectors.means, vectors.n_tokens, candidate.layer_cosines)
            overlap = None if around is None or nearest is None else shared(nearest, around)
        cards.append(
            Card(
                candidate=candidate,
                device=device,
                n_texts=len(sample.texts),
                n_tokens=vectors.n_tokens,
                n_cut=vectors.n_cut,
                parity=parity,
                overlap=overlap,
                retrieval=retrieval,
            )
        )
    return cards


def neighbours(codes: np.ndarray) -> np.ndarray:
    """Places of the ten rows most like each of int8 codes `[N, D]`, itself left out: int64 `[N, 10]`, N at least 11."""
    found = np.empty((len(codes), TOP), np.int64)
    for start in range(0, len(codes), _BLOCK):
        scores = similarity(codes[start : start + _BLOCK], codes)
        for i, row in enumerate(scores, start=start):
            row[i] = -np.inf
            found[i] = top_k(row, TOP)
    return found


def shared(first: np.ndarray, second: np.ndarray) -> float:
    """Mean share of each row of places `[N, k]` that is also in the same row of the other."""
    return float(np.mean([np.isin(a, b).mean() for a, b in zip(first, second, strict=True)]))


@dataclass(frozen=True, slots=True, eq=False)
class _Vectors:
    """Means float32 `[N, D]`, the tokens that were read, and the texts that were cut."""

    means: np.ndarray
    n_tokens: int
    n_cut: int


def _vectors(embedder: Embedder, sample: Sample, label: str) -> _Vectors:
    whole = embedder.tokenizer.text_rows(sample.texts)
    rows = [row.cut(sample.max_tokens) for row in whole]
    longest = sample.max_tokens if sample.tasks else max(len(row) for row in rows)
    if longest > embedder.max_tokens:  # all models have to read the same tokens
        raise InputError(
            f"{label} reads {embedder.max_tokens:,} tokens at once, texts have up to {longest:,}; "
            f"cut them for all: --max-tokens {embedder.max_tokens}"
        )
    means = np.zeros((len(rows), embedder.dim), np.float32)
    for picked in plan_batches([len(row) for row in rows], embedder.session.policy):
        means[picked] = embedder.session.span_means(collate([rows[i] for i in picked], embedder.tokenizer.sep_id))
    require_finite(means, [f"text {i + 1} of {sample.name}" for i in range(len(rows))])
    n_cut = sum(len(row) > sample.max_tokens for row in whole)
    return _Vectors(means, sum(len(row) for row in rows), n_cut)


def _read_tasks(folders: Sequence[Path]) -> list[RetrievalTask]:
    """All tasks, before anything is encoded, so that a fault in the last one is found at once."""
    if not folders:
        return []
    from pplx_bench.retrieval.beir import read_task

    try:
        import pplx_bench.retrieval.metrics  # noqa: F401 (what scores rankings is asked for now, not after the first encoding)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"compare --beir ({error.name} is not installed)", EXTRA) from error
    return [read_task(folder) for folder in folders]


def _retrieval(embedder: Embedder, task: RetrievalTask, max_tokens: int) -> dict[str, float]:
    """nDCG@10 of each precision, each passage read alone."""
    from pplx_bench.retrieval.encoders import EdgeEncoder
    from pplx_bench.retrieval.metrics import DEPTH, MAIN, evaluate_task
    from pplx_bench.retrieval.ranking import rank_means

    encoder = EdgeEncoder(embedder, max_tokens, max_tokens)
    queries, passages = (encoder.texts([item.text for item in items]).means for items in (task.queries, task.corpus))
    return {
        precision: evaluate_task(task, rank_means(queries, passages, precision, DEPTH))[MAIN]
        for precision in NDCG_PRECISIONS
    }
