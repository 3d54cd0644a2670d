"""The error rate of "nothing relevant" on held-out tasks, and the calibration that pplx-search uses.

Half of the documents of each task are indexed. Queries about them are `answerable`; those about the other half are
`missing`, the hard kind, because their subject is in the index; queries of other tasks are `foreign`. All tasks have
the same weight, half of it on answerable queries. The last index contains documents of all tasks, like a real one.

Errors on a task come from a regression and a threshold that were fitted to tasks of other sources only.
"""

import hashlib
import json
import random
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import pplx_edge
from pplx_bench import machine
from pplx_bench.options import comma_list, require_writable
from pplx_bench.retrieval.beir import RetrievalTask, TaskQuery, read_task, task_folders
from pplx_bench.search.index import index_documents
from pplx_bench.search.retrieval import Figures, sampled
from pplx_bench.workdir import say
from pplx_edge import Embedder
from pplx_edge.errors import InputError, MissingExtra
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import positive
from pplx_search.calibration import ANSWERABLE, ERRORS, FOREIGN, MISSING, LabeledQuery, errors_of, fit
from pplx_search.null_baseline import measure_null_baseline
from pplx_search.query.evidence import FIRST_HITS
from pplx_search.query.relevance import Calibration, features
from pplx_search.store import Query, Store

TASKS = (
    *("squad-dev", "squad-context", "tydi-en-dev", "scitldr", "sealtools-ood", "tydi-sw-dev", "tydi-ko-dev"),
    *("jaquad-dev", "xquad-de", "xquad-ru", "xquad-zh", "xquad-hi"),
)
MIXED = "all together"
HELD_OUT, CALIBRATION = "held out", "calibration"
_ONE_SOURCE = ("squad", "xquad")  # tasks with these prefixes have the same passages, in several languages
_MIN_SOURCES = 3  # two to fit and one to hold out


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    add = group.add_argument
    add(
        "--tasks",
        type=comma_list,
        metavar="T,T",
        help="Tasks to fit to (default: twelve of the public benchmark if FOLDER has them, otherwise all in FOLDER).",
    )
    add("--questions", type=positive, default=500, metavar="N", help="Number of random questions per task.")
    add(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="Also fit the calibration to all tasks, and write it to this .json file, for the folder of an index. "
        "The error rates are of tasks left out of the fit.",
    )
    add("--model", default=BUILT_IN, metavar="MODEL", help="Model of the index.")
    add("--threads", type=positive, metavar="N", help="Number of CPU threads (default: all cores).")


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Yield the errors on each held-out task, and the calibration fitted to all tasks."""
    if find_spec("sklearn") is None:
        raise MissingExtra("bench search relevance (scikit-learn is not installed)", "quality")
    require_writable(args.calibration, ".json")
    names = args.tasks or (TASKS if (args.data / TASKS[0]).is_dir() else None)
    tasks = [read_task(folder) for folder in task_folders([args.data], names)]
    if (n_sources := len({source_of(task.name) for task in tasks})) < _MIN_SOURCES:
        raise InputError(f"{n_sources} sources of tasks: at least 3 are needed to hold one out; name more tasks")
    apart = {source_of(task.name): task for task in reversed(tasks)}
    indexes = {**{task.name: [task] for task in tasks}, MIXED: list(apart.values())}
    with pplx_edge.load(args.model, offline=True, threads=args.threads) as model:
        queries = [each for name in indexes for each in _queries(name, indexes[name], tasks, model, args, work)]
    errors = []
    for source in dict.fromkeys(source_of(each.task) for each in queries):
        found = fit([each for each in queries if source_of(each.task) != source])
        held_out = [each for each in queries if source_of(each.task) == source]
        for task, index in dict.fromkeys((each.task, each.index) for each in held_out):
            here = [each for each in held_out if (each.task, each.index) == (task, index)]
            errors.append({"task": task, "index": index, **errors_of(here, found)})
            yield {"model": args.model, "what": HELD_OUT} | errors[-1]
    made: Figures = {
        "command": "pplx-edge bench search relevance DATA",
        "tasks": list(dict.fromkeys(each.task for each in queries)),
        "questions": len(queries),
        HELD_OUT: {key: mean_of(errors, key) for key in ERRORS},
        "commit": machine.commit(),
    }
    calibration = asdict(Calibration(model=args.model, **asdict(fit(queries)), made=made))
    if args.calibration is not None:
        args.calibration.write_text(json.dumps(calibration, indent=2) + "\n", encoding="utf-8")
    yield {"what": CALIBRATION} | calibration


def mean_of(errors: Sequence[Figures], key: str) -> float:
    """Return the mean of an error over the tasks that have it."""
    return float(np.mean([each[key] for each in errors if each[key] is not None]))


def source_of(task: str) -> str:
    """Return the source of a task; tasks of one source share their passages."""
    return _ONE_SOURCE[0] if task.startswith(_ONE_SOURCE) else task


def _queries(
    name: str,
    inside: Sequence[RetrievalTask],
    tasks: Sequence[RetrievalTask],
    model: Embedder,
    args: Namespace,
    work: Path,
) -> Iterator[LabeledQuery]:
    """Index half of the documents of some tasks, and yield their queries with the evidence."""
    with tempfile.TemporaryDirectory(dir=work) as directory, Store.open(Path(directory), write=True) as store:
        say(f"{name}: indexing half of the documents")
        _index(store, inside, model, args.model)
        serving = store.vectors.serving
        assert serving is not None  # it was just created
        measure_null_baseline(store, model, serving)
        baseline = store.vectors.null_baseline(serving)
        if baseline is None:
            raise InputError(f"{name}: too few documents for a null baseline; name larger tasks with --tasks")
        for task in inside:
            asked = _kinds(task, inside, tasks, args.questions)
            codes = model.encode_query([query.text for query, _ in asked], show_progress=False)
            for (query, kind), row in zip(asked, codes, strict=True):
                evidence = store.answer(Query(codes=row, words=query.text, k=FIRST_HITS)).evidence
                values = features(evidence, baseline)
                assert values is not None  # the query has a vector
                yield LabeledQuery(name, task.name, kind, values, evidence.exact)


def _index(store: Store, tasks: Sequence[RetrievalTask], model: Embedder, name: str) -> None:
    documents = (
        (f"/tasks/{task.name}/{number}.txt".encode(), text)
        for task in tasks
        for number, (document, text) in enumerate(_documents(task))
        if _is_kept(document)
    )
    index_documents(store, documents, model, name)


def _documents(task: RetrievalTask) -> Iterator[tuple[str, str]]:
    """Yield the name and text of each document: its pieces in order, or a passage by itself."""
    if any(passage.doc_id is None for passage in task.corpus):
        yield from ((passage.id, passage.text) for passage in task.corpus)
        return
    for indices in task.documents:
        pieces = [task.corpus[index] for index in indices]
        yield str(pieces[0].doc_id), "\n\n".join(piece.text for piece in pieces)


def _is_kept(document: str) -> bool:
    return hashlib.sha256(document.encode()).digest()[0] % 2 == 0


def _kinds(
    task: RetrievalTask, inside: Sequence[RetrievalTask], tasks: Sequence[RetrievalTask], count: int
) -> list[tuple[TaskQuery, str]]:
    """Return queries of a task, answerable or missing, and as many foreign ones as are missing."""
    document_of = {passage.id: passage.doc_id or passage.id for passage in task.corpus}
    found = []
    for query in sampled(task.queries, count):
        kept = [_is_kept(document_of[passage]) for passage in task.relevant(query.id)]
        if all(kept) or not any(kept):
            found.append((query, ANSWERABLE if all(kept) else MISSING))
    sources = {source_of(each.name) for each in inside}
    foreign = (other for other in tasks if source_of(other.name) not in sources)
    others = [query for other in foreign for query in sampled(other.queries, count)]
    n_missing = sum(kind == MISSING for _, kind in found)
    sample = random.Random(task.name).sample(others, min(n_missing, len(others)))
    return found + [(query, FOREIGN) for query in sample]
