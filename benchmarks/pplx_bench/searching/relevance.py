"""Measure how well the app recognizes that nothing is relevant, and fit the calibration of that decision.

Half of the documents of each task are indexed. Questions answered in them are `answerable`. Questions answered in the
other half are `missing`: the hard kind, because the index has documents on the same subject. Questions of other tasks
are `foreign`. All tasks have the same weight, and answerable questions have half of the total. The last index contains
documents of all tasks, like the files of a person.

The errors on a task are measured with a regression and a threshold fitted on tasks of other sources only.
"""

import hashlib
import json
import random
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import pplx_edge
from pplx_bench import machine, tables
from pplx_bench.options import comma_list, require_writable
from pplx_bench.retrieval import beir
from pplx_bench.retrieval.beir import RetrievalTask, read_task, task_folders
from pplx_bench.searching.retrieval import sampled
from pplx_bench.workdir import say
from pplx_edge import Embedder
from pplx_edge.errors import InputError, MissingExtra
from pplx_edge.weights.hub import BUILT_IN
from pplx_search.documents import Document, Piece
from pplx_search.embedding import TextEmbedder
from pplx_search.null_baseline import measure_null_baseline
from pplx_search.query.evidence import FIRST_HITS
from pplx_search.query.relevance import FEATURES, Calibration, features
from pplx_search.settings import fingerprint_of, options_for, settings_of
from pplx_search.store import FileFacts, Query, Store, text_digest

TASKS = (
    *("squad-dev", "squad-context", "tydi-en-dev", "scitldr", "sealtools-ood", "tydi-sw-dev", "tydi-ko-dev"),
    *("jaquad-dev", "xquad-de", "xquad-ru", "xquad-zh", "xquad-hi"),
)
MIXED = "all together"
ANSWERABLE, MISSING, FOREIGN = KINDS = ("answerable", "missing", "foreign")
_ONE_SOURCE = ("squad", "xquad")  # tasks of these names ask of the same passages, in several languages and cuts
_DECLINED = 0.05  # share of answerable questions that may be said to have no answer

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question of a task to an index, whether the answer is there, and FEATURES of what was found, `exact` apart."""

    index: str
    task: str
    kind: str
    features: tuple[float, ...]
    exact: bool


def add_options(group: Any) -> None:
    """The options of this part; `--questions` is that of retrieval."""
    group.add_argument("--calibrated-on", type=comma_list, default=list(TASKS), metavar="T,T", help="tasks")
    group.add_argument(
        "--calibration", type=Path, metavar="FILE", help="write what was fitted to all tasks here: .json"
    )
    group.add_argument("--model", default=BUILT_IN, metavar="MODEL", help="whose vectors (default: %(default)s)")


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """A result for each task that was held out, and one for what was fitted to all."""
    if find_spec("sklearn") is None:
        raise MissingExtra("bench search --what relevance (scikit-learn is not installed)", "quality")
    if args.calibration is not None:
        require_writable(args.calibration, ".json")
    tasks = [read_task(folder) for folder in task_folders([args.data], args.calibrated_on)]
    if (n_sources := len({source_of(task.name) for task in tasks})) < 3:  # two to fit, one to hold out
        raise InputError(f"{n_sources} sources of tasks: at least 3 are needed to hold one out; name more tasks")
    with pplx_edge.load(args.model, offline=True, threads=args.threads) as model:
        asked = [each for index in _indexes(tasks) for each in _ask(index, tasks, model, args, work)]
    errors = []
    for source in dict.fromkeys(source_of(each.task) for each in asked):
        coefficients, intercept, least = fit([each for each in asked if source_of(each.task) != source])
        held_out = [each for each in asked if source_of(each.task) == source]
        for task, index in dict.fromkeys((each.task, each.index) for each in held_out):
            here = [each for each in held_out if (each.task, each.index) == (task, index)]
            errors.append({"task": task, "index": index, **error_of(here, coefficients, intercept, least)})
            yield {"model": args.model, "what": "held out"} | errors[-1]
    coefficients, intercept, least = fit(asked)
    made: Figures = {
        "command": "pplx-edge bench search DATA --what relevance",
        "tasks": list(dict.fromkeys(each.task for each in asked)),
        "questions": len(asked),
        "held out": {key: float(np.mean([e[key] for e in errors if e[key] is not None])) for key in _ERRORS},
        "commit": machine.run()["commit"],
    }
    found = Calibration(model=args.model, coefficients=coefficients, intercept=intercept, least_chance=least, made=made)
    if args.calibration is not None:
        args.calibration.write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")
    yield {"what": "calibration"} | asdict(found)


_ERRORS = ("declined", "missing_answered", "foreign_answered", "auc", "brier")


def source_of(task: str) -> str:
    """Return the source of the passages of a task; tasks with the same passages have the same source."""
    return _ONE_SOURCE[0] if task.startswith(_ONE_SOURCE) else task


def fit(asked: Sequence[Asked]) -> tuple[tuple[float, ...], float, float]:
    """Return coefficients of FEATURES, intercept, and the threshold that wrongly declines at most `_DECLINED`."""
    from sklearn.linear_model import LogisticRegression

    rows = np.array([each.features for each in asked])
    there = np.array([each.kind == ANSWERABLE for each in asked])
    weights = weights_of(asked)
    spread = rows.std(axis=0)
    fitted = LogisticRegression(max_iter=10_000).fit(rows / spread, there, sample_weight=weights * len(asked))
    coefficients = tuple((fitted.coef_[0] / spread).tolist())
    intercept = float(fitted.intercept_[0])
    chances = chances_of(asked, coefficients, intercept)
    counted = there & ~np.array([each.exact for each in asked])
    order = np.argsort(chances[counted])
    below = np.cumsum(weights[counted][order]) / weights[there].sum()
    least = chances[counted][order][min(np.searchsorted(below, _DECLINED), len(order) - 1)]
    return coefficients, intercept, float(least)


def weights_of(asked: Sequence[Asked]) -> np.ndarray:
    """So that tasks weigh the same, answerable questions half of each, and kinds of others the same."""
    counts: dict[tuple[str, str], int] = {}
    for each in asked:
        counts[each.task, each.kind] = counts.get((each.task, each.kind), 0) + 1
    n_tasks = len({task for task, _ in counts})
    share = {ANSWERABLE: 0.5, MISSING: 0.25, FOREIGN: 0.25}
    return np.array([share[each.kind] / counts[each.task, each.kind] / n_tasks for each in asked])


def chances_of(asked: Sequence[Asked], coefficients: Sequence[float], intercept: float) -> np.ndarray:
    """The chance of each."""
    logits = np.array([each.features for each in asked]) @ np.array(coefficients) + intercept
    return 1 / (1 + np.exp(-logits))


def error_of(asked: Sequence[Asked], coefficients: Sequence[float], intercept: float, least: float) -> Figures:
    """Shares of answerable questions that are declined and of others that are not, and how good the chances are."""
    from sklearn.metrics import roc_auc_score

    chances = chances_of(asked, coefficients, intercept)
    kinds = np.array([each.kind for each in asked])
    answered = (chances >= least) | np.array([each.exact for each in asked])
    there, weights = kinds == ANSWERABLE, weights_of(asked)
    shares = {kind: float(answered[kinds == kind].mean()) if (kinds == kind).any() else None for kind in KINDS}
    declined = shares[ANSWERABLE]
    return {
        "n": {kind: int((kinds == kind).sum()) for kind in KINDS},
        "declined": None if declined is None else 1 - declined,
        "missing_answered": shares[MISSING],
        "foreign_answered": shares[FOREIGN],
        "auc": float(roc_auc_score(there, chances, sample_weight=weights)),
        "brier": float(np.average((chances - there) ** 2, weights=weights)),
    }


def table(results: Sequence[Figures]) -> str:
    """A line a task, and the mean of all."""
    held_out = [result for result in results if result["what"] == "held out"]
    lines = [[f"{each['task']} in {each['index']}", *_cells(each)] for each in held_out]
    means: Figures = {key: np.mean([each[key] for each in held_out if each[key] is not None]) for key in _ERRORS}
    lines.append(["mean", *_cells(means)])
    head = ["held out", "declined %", "missing %", "foreign %", "AUC", "Brier"]
    (found,) = [result for result in results if result["what"] == "calibration"]
    numbers = ", ".join(f"{name} {c:.3f}" for name, c in zip(FEATURES, found["coefficients"], strict=True))
    fitted = f"fitted to all: {numbers}, intercept {found['intercept']:.3f}, least chance {found['least_chance']:.3f}"
    title = "answerable questions that are declined; others that are answered: their document is missing, or foreign"
    return f"{title}\n\n{tables.table(head, lines, label_width=36)}\n\n{fitted}"


def _cells(figures: Mapping[str, Any]) -> list[str]:
    shares = ["" if figures[key] is None else f"{100 * figures[key]:.1f}" for key in _ERRORS[:3]]
    return [*shares, f"{figures['auc']:.3f}", f"{figures['brier']:.3f}"]


def _indexes(tasks: Sequence[RetrievalTask]) -> list[tuple[str, list[RetrievalTask]]]:
    """An index for each task, and one for all of them that are of different sources."""
    apart = {source_of(task.name): task for task in reversed(tasks)}
    return [*((task.name, [task]) for task in tasks), (MIXED, list(apart.values()))]


def _ask(
    index: tuple[str, list[RetrievalTask]],
    tasks: Sequence[RetrievalTask],
    model: Embedder,
    args: Namespace,
    work: Path,
) -> Iterator[Asked]:
    name, inside = index
    with tempfile.TemporaryDirectory(dir=work) as directory, Store.open(Path(directory), write=True) as store:
        say(f"{name}: indexing half of the documents")
        _index(store, inside, model, args.model)
        serving = store.vectors.serving
        assert serving is not None
        measure_null_baseline(store, model, serving)
        baseline = store.vectors.null_baseline(serving)
        if baseline is None:
            raise InputError(f"{name}: too few documents for a null baseline; name larger tasks with --calibrated-on")
        for task in inside:
            questions = _questions(task, inside, tasks, args.questions)
            codes = model.encode_query([query.text for query, _ in questions], show_progress=False)
            for (query, kind), row in zip(questions, codes, strict=True):
                evidence = store.answer(Query(codes=row, words=query.text, k=FIRST_HITS)).evidence
                found = features(evidence, baseline)
                assert found is not None  # the query has a vector
                yield Asked(name, task.name, kind, found, evidence.exact)


def _index(store: Store, tasks: Sequence[RetrievalTask], model: Embedder, name: str) -> None:
    options = options_for(model)
    settings = settings_of(name, model, options)
    generation = store.vectors.use(fingerprint_of(settings), settings, model.dim)
    store.collections.add("all")
    scan = store.files.scan(store.collections.add_root("all", b"/tasks").id)
    embedder = TextEmbedder(store, model, generation, options)
    for task in tasks:
        staged = []
        for number, (name_of, text) in enumerate(_documents(task)):
            if not _is_kept(name_of):
                continue
            facts = FileFacts(path=f"/tasks/{task.name}/{number}.txt".encode(), size=len(text), inode=number + 1)
            seen = scan.see(facts)
            with store.transaction():
                store.files.begin(seen.file_id)
                document = Document(kind="text", pieces=(Piece(text),))
                text_id = store.files.stage(seen.file_id, document, text_digest(document)).text_id
            staged.append((seen.file_id, facts, text_id))
        embedder.embed(text_id for _, _, text_id in staged)
        with store.transaction():
            for file_id, facts, text_id in staged:
                store.files.finish(file_id, facts, text_id.to_bytes(32, "little"))


def _documents(task: RetrievalTask) -> Iterator[tuple[str, str]]:
    """Name and text of each document: pieces in their order, or a passage by itself."""
    if any(passage.doc_id is None for passage in task.corpus):
        yield from ((passage.id, passage.text) for passage in task.corpus)
        return
    for places in task.documents:
        pieces = [task.corpus[place] for place in places]
        yield str(pieces[0].doc_id), "\n\n".join(piece.text for piece in pieces)


def _is_kept(document: str) -> bool:
    return hashlib.sha256(document.encode()).digest()[0] % 2 == 0


def _questions(
    task: RetrievalTask, inside: Sequence[RetrievalTask], tasks: Sequence[RetrievalTask], count: int
) -> list[tuple[beir.Query, str]]:
    """Questions of a task, answerable or missing, and as many foreign ones as are missing."""
    document_of = {passage.id: passage.doc_id or passage.id for passage in task.corpus}
    found = []
    for query in sampled(task.queries, count):
        right = [document_of[passage] for passage, grade in task.qrels[query.id].items() if grade > 0]
        kept = [_is_kept(document) for document in right]
        if all(kept) or not any(kept):
            found.append((query, ANSWERABLE if all(kept) else MISSING))
    others = [query for other in tasks if not _related(other, inside) for query in sampled(other.queries, count)]
    rng = random.Random(task.name)
    n_missing = sum(kind == MISSING for _, kind in found)
    return found + [(query, FOREIGN) for query in rng.sample(others, min(n_missing, len(others)))]


def _related(task: RetrievalTask, inside: Sequence[RetrievalTask]) -> bool:
    """Return whether the documents of a task, or translations of them, are in an index."""
    return source_of(task.name) in {source_of(each.name) for each in inside}
