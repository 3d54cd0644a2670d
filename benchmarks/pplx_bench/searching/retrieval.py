"""Retrieval through the whole app: tasks in BEIR layout as files, indexed and searched as pplx-search does it.

A hit is a chunk and a task judges passages, so hits are turned into passages (see `passages`): a chunk stands for those
that it holds something of, in the order of the hits and within a chunk of the text. A chunk does not say which of its
passages it means: of four that it holds, the right one comes second or third. So figures of passages fall as chunks
grow beyond passages, and `shown`, whether the right passage is in one of the first hits, rises.
"""

import os
import random
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import pplx_edge
from pplx_bench import report
from pplx_bench.options import comma_list
from pplx_bench.retrieval import beir
from pplx_bench.retrieval.beir import RetrievalTask, read_task, task_folders
from pplx_bench.searching.alone import ChunksAlone
from pplx_bench.searching.files import Written, write_files
from pplx_bench.searching.passages import Bounds, Passages, chunk_bounds, find_passages
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
_K = 10  # of all figures
_HITS = 50  # asked for: what a search of fewer might leave of ten passages when passages have several chunks
_NEEDED = ("ir_measures", "docx", "reportlab", "matplotlib")
_LABEL_WIDTH = 26

Figures = dict[str, Any]
Ask = Callable[[beir.Query, np.ndarray], Query]


def _words(query: beir.Query, codes: np.ndarray) -> Query:
    return Query(words=query.text, k=_HITS)


def _dense(query: beir.Query, codes: np.ndarray) -> Query:
    return Query(codes=codes, k=_HITS)


def _hybrid(query: beir.Query, codes: np.ndarray) -> Query:
    return Query(words=query.text, codes=codes, k=_HITS)


WORDS = "words"
SYSTEMS: dict[str, Ask] = {WORDS: _words, "dense": _dense, "hybrid": _hybrid}


def add_options(group: Any) -> None:
    """The options of this part."""
    group.add_argument(
        "--tasks", type=comma_list, default=list(TASKS), metavar="T,T", help=f"default {', '.join(TASKS)}"
    )
    group.add_argument(
        "--questions", type=positive, default=500, metavar="N", help="a task, drawn by chance (default: %(default)s)"
    )
    group.add_argument(
        "--chunk-tokens", type=positive, default=CHUNK_TOKENS, metavar="N", help="default the app's: %(default)s"
    )


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Every task: its files, an index a way of reading, and in it every system."""
    for name in _NEEDED:
        if find_spec(name) is None:
            raise MissingExtra(f"bench search --what retrieval ({name} is not installed)", "quality")
    tasks = [read_task(folder) for folder in task_folders([args.data], args.tasks)]
    with pplx_edge.load(args.model, offline=True, threads=args.threads) as model:
        options = options_for(model, replace(INDEX_OPTIONS, chunk_tokens=args.chunk_tokens))
        for task in tasks:
            run = Run(task, sampled(task.queries, args.questions), model, options, (work / task.name).absolute())
            for figures in run.measure():
                say(f"{task.name}, {label(figures)}: nDCG@10 {100 * figures['metrics']['ndcg@10']:.2f}")
                yield {"model": args.model} | figures


def sampled(queries: Sequence[beir.Query], count: int) -> list[beir.Query]:
    """So many queries, the same ones each time, in their order; all of them where there are no more."""
    if count >= len(queries):
        return list(queries)
    return [queries[i] for i in sorted(random.Random(0).sample(range(len(queries)), count))]


@dataclass(frozen=True, slots=True)
class Run:
    """A task and what it is asked, read by a model with these options; files and indexes go below `work`."""

    task: RetrievalTask
    queries: Sequence[beir.Query]
    model: Embedder
    options: StreamOptions
    work: Path

    def measure(self) -> Iterator[Figures]:
        """Every system in every reading. Words are the same in all of them."""
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
                    found = [store.search(ask(query, row)) for query, row in zip(self.queries, codes, strict=True)]
                    yield about | {
                        "system": system,
                        "reading": None if system == WORDS else reading,
                        "metrics": score(self.task, self.queries, passages, found),
                        "search_seconds": time.perf_counter() - started,
                    }

    @contextmanager
    def _indexed(self, reading: str, written: Written) -> Iterator[tuple[Store, Figures]]:
        """The index of the files, opened for reading as `pplx-search search` does, and how it was made."""
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
    task: RetrievalTask, queries: Sequence[beir.Query], passages: Passages, found: Sequence[Sequence[Hit]]
) -> dict[str, float]:
    """Figures of the hits of each query.

    Of passages: nDCG@10, recall@10 and MRR@10, by `quality.metrics`; `shown@k` is the share of queries with a right
    passage in one of the first `k` hits, `file@k` that with a hit in a right file.
    """
    from pplx_bench.retrieval.metrics import evaluate as figures

    ids = [passage.id for passage in task.corpus]
    nothing = [f"nothing {i}" for i in range(_K)]  # in the place of passages that were not found: judged irrelevant
    ranking = np.tile(len(ids) + np.arange(_K), (len(queries), 1))
    for row, hits in zip(ranking, found, strict=True):
        best = passages.ranking(hits)[:_K]
        row[: len(best)] = best
    of_passages = figures(task.qrels, [query.id for query in queries], [*ids, *nothing], ranking)
    return {name: of_passages[name] for name in ("ndcg@10", "recall@10", "mrr@10")} | _of_hits(
        task, queries, passages, found
    )


def _of_hits(
    task: RetrievalTask, queries: Sequence[beir.Query], passages: Passages, found: Sequence[Sequence[Hit]]
) -> dict[str, float]:
    places = {passage.id: place for place, passage in enumerate(task.corpus)}
    counts = {f"{what}@{k}": 0 for what in ("shown", "file") for k in (1, _K)}
    for query, hits in zip(queries, found, strict=True):
        right = {places[name] for name, grade in task.qrels[query.id].items() if grade > 0}
        texts = {text for place in right for text in passages.texts.get(place, ())}
        for k in (1, _K):
            counts[f"shown@{k}"] += any(right.intersection(passages.shown(hit)) for hit in hits[:k])
            counts[f"file@{k}"] += any(hit.text_id in texts for hit in hits[:k])
    return {name: count / len(queries) for name, count in counts.items()}


def label(figures: Mapping[str, Any]) -> str:
    """A system and its reading."""
    return figures["system"] if figures["reading"] is None else f"{figures['system']}, {figures['reading']}"


def table(results: Sequence[Figures]) -> str:
    """A table a figure, with a line a system and a column a task; then what the tasks are."""
    tasks = list(dict.fromkeys(result["task"] for result in results))
    by_place = {(label(result), result["task"]): result for result in results}
    order = list(SYSTEMS)
    lines_of = dict.fromkeys(label(result) for result in sorted(results, key=lambda r: order.index(r["system"])))
    parts = []
    for name in results[0]["metrics"]:
        lines = [[line, *(f"{100 * by_place[line, task]['metrics'][name]:.2f}" for task in tasks)] for line in lines_of]
        parts.append(report.table([f"{_named(name)} × 100", *tasks], lines, _LABEL_WIDTH))
    return "\n\n".join([*parts, _about_table([by_place[next(iter(lines_of)), task] for task in tasks])])


def _named(metric: str) -> str:
    return {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10"}.get(metric, metric)


def _about_table(results: Sequence[Figures]) -> str:
    counts = ("questions", "files", "failed", "not_pdf", "chunks", "passages", "missing")
    lines = [[name.replace("_", " "), *(f"{result[name]:,}" for result in results)] for name in counts]
    head = [f"chunks of {results[0]['chunk_tokens']} tokens", *(result["task"] for result in results)]
    note = (
        "failed: files that are not in the index; not pdf: files that became Word documents because PDF's font lacks\n"
        "letters of theirs; missing: passages that are not in the text of the index, judged all the same"
    )
    return f"{report.table(head, lines, _LABEL_WIDTH)}\n{note}"
