"""Fit the weights of cosine, phrase and name matches in the ranking of pplx-search (`fusion.WEIGHTS`).

Every passage of a task becomes a file that is named after its first words. The index is asked the task's questions, and
for some passages a run of words in the middle, as people do who remember a phrase, and the name of the file. The score
of a ranking is nDCG@10, of which questions are 80 % and phrases and names 10 % each.

The weights are those with the best mean score of all tasks on a grid. For each task, weights that were fitted to the
other tasks only are compared with those in use. Fit to held-out questions of the training data (`python -m pplx_quant
held-out`), never to the tasks that results are reported on.
"""

import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import pplx_edge
from pplx_bench.options import comma_list
from pplx_bench.retrieval.beir import RetrievalTask, read_task, task_folders
from pplx_bench.search.index import index_documents
from pplx_bench.search.retrieval import sampled
from pplx_bench.workdir import say
from pplx_edge import Embedder
from pplx_edge.errors import InputError
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import positive
from pplx_search.query.fusion import WEIGHTS, Legs, Weights, fuse
from pplx_search.store import Query, Store

QUESTION, PHRASE, NAME = KINDS = ("question", "phrase", "name")
HELD_OUT, WEIGHTS_FOUND = "held out", "weights"
CLEAR_GAIN = 0.005  # of the mean score of tasks that were left out
CLEAR_SHARE = 0.75  # of these tasks that must gain, or lose nothing
_SHARES = {QUESTION: 0.8, PHRASE: 0.1, NAME: 0.1}
_PHRASE_WORDS, _NAME_WORDS, _LEAST_WORDS = 5, 4, 20
_HITS = 50
_K = 10
_COSINES = np.round(np.arange(0, 1.001, 0.05), 2)
_BONUSES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
GRID = np.array([*product(_COSINES, _BONUSES, _BONUSES)])  # cosine, phrase, name: [W, 3]
_NEARLY = 1e-6  # of two weights with the same score, those nearer to the ones in use are taken

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A query, its kind, and the indices in the corpus of the passages that answer it."""

    text: str
    kind: str
    right: frozenset[int]


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    add = group.add_argument
    add("--tasks", type=comma_list, metavar="T,T", help="Tasks to fit to (default: all in FOLDER).")
    add("--questions", type=positive, default=200, metavar="N", help="Number of random questions per task.")
    add("--model", default=BUILT_IN, metavar="MODEL", help="Model of the index.")
    add("--threads", type=positive, metavar="N", help="Number of CPU threads (default: all cores).")


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Yield the scores of each task with weights fitted to the others, and the weights fitted to all."""
    tasks = [read_task(folder) for folder in task_folders([args.data], args.tasks)]
    if len(tasks) < 2:
        raise InputError(f"{len(tasks)} task: at least 2 are needed to hold one out; name more with --tasks")
    scores: dict[str, Mapping[str, np.ndarray]] = {}
    with pplx_edge.load(args.model, offline=True, threads=args.threads) as model:
        for task in tasks:
            say(f"{task.name}: indexing {len(task.corpus):,} passages")
            with tempfile.TemporaryDirectory(dir=work) as home, Store.open(Path(home), write=True) as store:
                scores[task.name] = scores_of(task, asked_of(task, args.questions), store, model, args.model)
    used = place_of(WEIGHTS)
    gains = []
    for name, own in scores.items():
        fitted = best_place([each for other, each in scores.items() if other != name])
        gains.append(float(total(own)[fitted] - total(own)[used]))
        yield {
            "model": args.model,
            "what": HELD_OUT,
            "task": name,
            "words": float(own[QUESTION][place_of(Weights(cosine=0, phrase=0, name=0))]),
            "vectors": float(own[QUESTION][place_of(Weights(cosine=1, phrase=0, name=0))]),
            **{f"{kind}, in use": float(own[kind][used]) for kind in own},
            **{f"{kind}, fitted": float(own[kind][fitted]) for kind in own},
            "gain": gains[-1],
            "fitted": asdict(weights_at(fitted)),
        }
    clearly = float(np.mean(gains)) >= CLEAR_GAIN and float(np.mean(np.array(gains) >= 0)) >= CLEAR_SHARE
    found = asdict(weights_at(best_place(list(scores.values()))))
    yield {
        "model": args.model,
        "what": WEIGHTS_FOUND,
        "tasks": list(scores),
        **found,
        "in use": asdict(WEIGHTS),
        "gain": float(np.mean(gains)),
        "clearly better": clearly,
    }


def asked_of(task: RetrievalTask, count: int) -> list[Asked]:
    """Return the questions of a task, and phrases and names of its passages, each at most `count`."""
    places = {passage.id: index for index, passage in enumerate(task.corpus)}
    found = [
        Asked(query.text, QUESTION, frozenset(places[name] for name in task.relevant(query.id)))
        for query in sampled(task.queries, count)
    ]
    texts = [" ".join(passage.text.casefold().split()) for passage in task.corpus]
    names = [name_of(passage.text) for passage in task.corpus]
    long_ones = [index for index, text in enumerate(texts) if len(text.split()) >= _LEAST_WORDS]
    for index in long_ones[:: max(1, len(long_ones) // count)][:count]:
        words = texts[index].split()
        phrase = " ".join(words[len(words) // 2 :][:_PHRASE_WORDS])
        found.append(Asked(phrase, PHRASE, frozenset(i for i, text in enumerate(texts) if phrase in text)))
        found.append(Asked(names[index], NAME, frozenset(i for i, name in enumerate(names) if name == names[index])))
    return found


def name_of(text: str) -> str:
    """Return the first words of a text, as people name files."""
    return " ".join(text.casefold().replace("/", " ").split()[:_NAME_WORDS])[:80]


def scores_of(
    task: RetrievalTask, asked: Sequence[Asked], store: Store, model: Embedder, name: str
) -> dict[str, np.ndarray]:
    """Return nDCG@10 of each kind of query for all weights of the grid `[W]`."""
    paths = [f"/files/{i} {name_of(passage.text)}.txt".encode() for i, passage in enumerate(task.corpus)]
    index_documents(store, zip(paths, (passage.text for passage in task.corpus), strict=True), model, name)
    passage_of = {
        int(chunk.id): paths.index(document.path)
        for document in store.documents()
        for chunk in store.chunks(document.text_id)
    }
    codes = model.encode_query([each.text for each in asked], show_progress=False)
    found: dict[str, list[np.ndarray]] = {}
    for each, row in zip(asked, codes, strict=True):
        legs = store.legs(Query(codes=row, words=each.text, k=_HITS))
        found.setdefault(each.kind, []).append(ndcg(*columns_of(legs, passage_of), each.right))
    return {kind: np.mean(rows, axis=0) for kind, rows in found.items()}


def columns_of(legs: Legs, passage_of: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return what each weight multiplies (1 - cosine, cosine, phrase, name) `[N, 4]`, and the passages `[N]`.

    The score of a chunk is linear in the weights, so it follows from its scores with four of them.
    """
    corners = [Weights(cosine=c, phrase=p, name=n) for c, p, n in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    rows = [fuse(legs, weights) for weights in corners]
    columns = np.array([[row[chunk] for row in rows] for chunk in rows[0]]).reshape(-1, 4)
    columns[:, 2:] -= columns[:, :1]
    return columns, np.array([passage_of[int(chunk)] for chunk in rows[0]], np.int64)


def ndcg(columns: np.ndarray, passages: np.ndarray, right: frozenset[int]) -> np.ndarray:
    """Return nDCG@10 for all weights of the grid `[W]`.

    A passage counts with its best chunk, and a tie as half a rank.
    """
    factors = np.column_stack([1 - GRID[:, 0], GRID])
    scores = factors @ columns.T  # [W, N]
    found = np.unique(passages)
    best = np.stack([scores[:, passages == passage].max(axis=1) for passage in found], axis=1) if len(found) else scores
    gain = np.zeros(len(GRID))
    for place in np.flatnonzero(np.isin(found, list(right))):
        own = best[:, place : place + 1]
        ranks = (best > own).sum(axis=1) + ((best == own).sum(axis=1) - 1) / 2
        gain += np.where(ranks < _K, 1 / np.log2(ranks + 2.0), 0)
    return gain / sum(1 / np.log2(rank + 2.0) for rank in range(min(_K, len(right))))


def total(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the score for all weights of the grid; kinds that a task does not have count in proportion."""
    shares = np.array([_SHARES[kind] for kind in scores])
    return shares @ np.stack(list(scores.values())) / shares.sum()


def best_place(scores: Sequence[Mapping[str, np.ndarray]]) -> int:
    """Return the place in the grid with the best mean score of some tasks."""
    far = np.abs(GRID - [WEIGHTS.cosine, WEIGHTS.phrase, WEIGHTS.name]).sum(axis=1)
    return int(np.argmax(np.mean([total(each) for each in scores], axis=0) - _NEARLY * far))


def place_of(weights: Weights) -> int:
    """Return the place of weights in the grid."""
    wanted = [weights.cosine, weights.phrase, weights.name]
    (places,) = np.nonzero(np.isclose(GRID, wanted).all(axis=1))
    if not len(places):
        raise InputError(f"{weights} are not in the grid; extend it in pplx_bench/search/fusion.py")
    return int(places[0])


def weights_at(place: int) -> Weights:
    """Return the weights at a place in the grid."""
    cosine, phrase, name = GRID[place].tolist()
    return Weights(cosine=cosine, phrase=phrase, name=name)
