"""Retrieval by the whole program: the documents of tasks as files, indexed and searched as pplx-search does it.

A hit is a chunk and a task judges passages, so hits are converted to passages (see `passages`): a chunk stands for all
passages that it overlaps. It does not say which of them is meant; if it holds four, the relevant one may come second or
third. So passage metrics decrease as chunks become larger than passages, while `shown`, whether the relevant passage is
in one of the first hits, increases.
"""

import os
import random
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import pplx_edge
from pplx_bench.options import comma_list
from pplx_bench.retrieval.beir import RetrievalTask, TaskQuery, read_task, task_folders
from pplx_bench.search.alone import ChunksAlone
from pplx_bench.search.files import Written, write_files
from pplx_bench.search.passages import Bounds, Passages, chunk_bounds, find_passages
from pplx_bench.workdir import say
from pplx_edge import Embedder, StreamOptions
from pplx_edge.errors import InputError, MissingExtra
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import positive
from pplx_search.indexer import Indexer
from pplx_search.settings import CHUNK_TOKENS, INDEX_OPTIONS, options_for, settings_of
from pplx_search.store import Hit, Query, Store

TASKS = ("squad-dev", "squad-context", "factbook-context", "tydi-en-dev", "scitldr")
LATE, ALONE = "late chunking", "chunks alone"
READINGS: dict[str, Callable[[Embedder], Embedder]] = {LATE: lambda model: model, ALONE: ChunksAlone}
_K = 10  # of all metrics
_HITS = 50  # enough hits to cover ten passages even if passages have several chunks
_NEEDED = ("ir_measures", "docx", "reportlab", "matplotlib")

Figures = dict[str, Any]
Ask = Callable[[str, np.ndarray], Query]
WORDS = "words"
SYSTEMS: dict[str, Ask] = {
    WORDS: lambda text, codes: Query(words=text, k=_HITS),
    "dense": lambda text, codes: Query(codes=codes, k=_HITS),
    "hybrid": lambda text, codes: Query(words=text, codes=codes, k=_HITS),
}


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    add = group.add_argument
    add("--tasks", type=comma_list, default=list(TASKS), metavar="T,T", help="Tasks to write as files.")
    add("--questions", type=positive, default=500, metavar="N", help="Number of random questions per task.")
    add("--chunk-tokens", type=positive, default=CHUNK_TOKENS, metavar="N", help="Tokens of a chunk.")
    add("--model", default=BUILT_IN, metavar="MODEL", help="Model of the index.")
    add("--threads", type=positive, metavar="N", help="Number of CPU threads (default: all cores).")


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Yield figures of every task, reading and system."""
    for name in _NEEDED:
        if find_spec(name) is None:
            raise MissingExtra(f"bench search retrieval ({name} is not installed)", "quality")
    tasks = [read_task(folder) for folder in task_folders([args.data], args.tasks)]
    with pplx_edge.load(args.model, offline=True, threads=args.threads) as model:
        options = options_for(model, replace(INDEX_OPTIONS, chunk_tokens=args.chunk_tokens))
        for task in tasks:
            run = Run(task, sampled(task.queries, args.questions), model, options, (work / task.name).absolute())
            for figures in run.measure():
                say(f"{task.name}, {label(figures)}: nDCG@10 {100 * figures['metrics']['ndcg@10']:.2f}")
                yield {"model": args.model} | figures


def sampled(queries: Sequence[TaskQuery], count: int) -> list[TaskQuery]:
    """Return a fixed random sample of at most `count` queries, in order."""
    if count >= len(queries):
        return list(queries)
    return [queries[i] for i in sorted(random.Random(0).sample(range(len(queries)), count))]


def label(figures: Figures) -> str:
    """Return the name of a system with its reading."""
    return figures["system"] if figures["reading"] is None else f"{figures['system']}, {figures['reading']}"


@dataclass(frozen=True, slots=True)
class Run:
    """A task, its queries, and the model and options that index it; files and indexes are created in `work`."""

    task: RetrievalTask
    queries: Sequence[TaskQuery]
    model: Embedder
    options: StreamOptions
    work: Path

    def measure(self) -> Iterator[Figures]:
        """Yield figures of every system in every reading; words are the same in all readings."""
        say(f"{self.task.name}: writing files")
        written = write_files(self.task, self.work / "files")
        codes = self.model.encode_query([query.text for query in self.queries], show_progress=False)
        first: Bounds = {}
        for reading in READINGS:
            say(f"{self.task.name}: indexing, {reading}")
            with self._indexed(reading, written) as (store, indexing):
                bounds = chunk_bounds(store)
                if first and bounds != first:
                    raise InputError(f"{self.task.name}: {reading} cut the files into other chunks than before")
                first = first or bounds
                passages = find_passages(store, self.task, written.files)
                about = self._about(written, passages, bounds) | indexing
                for system, ask in SYSTEMS.items():
                    if system == WORDS and reading != LATE:
                        continue
                    started = time.perf_counter()
                    asked = zip(self.queries, codes, strict=True)
                    found = [store.search(ask(query.text, row)) for query, row in asked]
                    yield about | {
                        "system": system,
                        "reading": None if system == WORDS else reading,
                        "metrics": score(self.task, self.queries, passages, found),
                        "search_seconds": time.perf_counter() - started,
                    }

    @contextmanager
    def _indexed(self, reading: str, written: Written) -> Iterator[tuple[Store, Figures]]:
        """Index the files, and yield the index, opened for reading as `pplx-search search` does, and its cost."""
        home = self.work / reading.replace(" ", "-")
        model = READINGS[reading](self.model)
        settings: dict[str, object] = {**settings_of(BUILT_IN, model, self.options), "reading": reading}
        started = time.perf_counter()
        with Store.open(home, write=True) as store:
            store.collections.add("files")
            store.collections.add_root("files", os.fsencode(self.work / "files"))
            done = Indexer(store, model, self.options, settings).update()
        figures = {
            "index_seconds": time.perf_counter() - started,
            "tokens": done.n_tokens,
            "failed": len(written.files) - done.indexed - done.known,
        }
        with Store.open(home) as store:
            yield store, figures

    def _about(self, written: Written, passages: Passages, bounds: Bounds) -> Figures:
        return {
            "task": self.task.name,
            "task_hash": self.task.digest[:16],
            "chunk_tokens": self.options.chunk_tokens,
            "hits": _HITS,
            "questions": len(self.queries),
            "files": len(written.files),
            "formats": written.formats,
            "not_pdf": written.not_pdf,
            "chunks": sum(map(len, bounds.values())),
            "passages": len(self.task.corpus),
            "missing": len(passages.missing),
        }


def score(
    task: RetrievalTask, queries: Sequence[TaskQuery], passages: Passages, found: Sequence[Sequence[Hit]]
) -> dict[str, float]:
    """Return the metrics of the hits of each query: nDCG@10, recall@10 and MRR@10 of passages.

    `shown@k` is the share of queries with a relevant passage in one of the first `k` hits, `file@k` the share with a
    hit in the file of one.
    """
    from pplx_bench.retrieval.metrics import evaluate

    ids = [passage.id for passage in task.corpus]
    nothing = [f"nothing {i}" for i in range(_K)]  # irrelevant ids in the place of passages that were not found
    ranking = np.tile(len(ids) + np.arange(_K), (len(queries), 1))
    indices = {name: index for index, name in enumerate(ids)}
    counts = {f"{what}@{k}": 0 for what in ("shown", "file") for k in (1, _K)}
    for query, hits, row in zip(queries, found, ranking, strict=True):
        best = passages.ranking(hits)[:_K]
        row[: len(best)] = best
        relevant = {indices[name] for name in task.relevant(query.id)}
        texts = {text_id for index in relevant for text_id in passages.texts.get(index, ())}
        for k in (1, _K):
            counts[f"shown@{k}"] += any(relevant.intersection(passages.shown(hit)) for hit in hits[:k])
            counts[f"file@{k}"] += any(hit.text_id in texts for hit in hits[:k])
    metrics = evaluate(task.qrels, [query.id for query in queries], [*ids, *nothing], ranking)
    shares = {name: count / len(queries) for name, count in counts.items()}
    return {name: metrics[name] for name in ("ndcg@10", "recall@10", "mrr@10")} | shares
