"""The whole program on real files: use of the model, memory and disk space, and the time to an answer.

The model is nano, and the files are made of the passages of tasks. Each step yields figures, some with a bound.
"""

import random
import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pplx_edge
from pplx_bench import machine
from pplx_bench.child import Message, run_task
from pplx_bench.options import one_of
from pplx_bench.retrieval.beir import RetrievalTask, read_task, task_folders
from pplx_bench.search import corpora, program
from pplx_bench.search.corpora import SmallFile
from pplx_bench.search.finders import finders
from pplx_bench.search.index import index_files
from pplx_bench.search.scale import build
from pplx_bench.search.synthetic import Chunks
from pplx_bench.workdir import directory_bytes, say
from pplx_edge import Embedder
from pplx_edge.errors import InputError
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import positive
from pplx_search.null_baseline import measure_null_baseline
from pplx_search.settings import options_for, settings_of
from pplx_search.store import Store

_MB = 1_000_000
_BUSY, _RESCAN, _RSS, _START, _SIZE = 90.0, 5.0, 700.0, 0.6, 1.5  # bounds: %, s, MB, s, MB of index per MB of text
_SIZE_CHUNK_TOKENS = 512
_LARGE_SHARE = 5  # a mailbox and a table are smaller than the large text by this factor
_UPDATES = 3
INDEX = "pplx_bench.search.ingest:index_folder"
Figures = dict[str, Any]


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    add = group.add_argument
    add("--steps", type=one_of(STEPS), default=list(STEPS), metavar="S,S", help=f"Steps to run: {', '.join(STEPS)}.")
    add("--files", type=positive, default=5000, metavar="N", help="ingest: Number of small files.")
    add("--asked", type=positive, default=200, metavar="N", help="ingest: Number of questions.")
    add("--rescan", type=positive, default=50_000, metavar="N", help="rescan: Number of unchanged files.")
    add("--large-mb", type=float, default=100.0, metavar="MB", help="large: Size of the text in MB.")
    add(
        "--stop-after",
        type=float,
        default=10.0,
        metavar="S",
        help="large: Interrupt after S seconds of embedding.",
    )
    add("--start-chunks", type=positive, default=100_000, metavar="N", help="start: Number of chunks in the index.")
    add(
        "--starts",
        type=positive,
        default=15,
        metavar="N",
        help="start: Number of processes that are started and timed.",
    )
    add("--size-mb", type=float, default=2.0, metavar="MB", help="size: Size of the text in MB.")
    add("--threads", type=positive, metavar="N", help="Number of CPU threads (default: all cores).")


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Yield the figures of every step."""
    tasks = [task for task in map(read_task, task_folders([args.data])) if not task.is_contextual]
    run = _Run(args, work.absolute(), tasks, args.threads or machine.n_cores())
    for step in args.steps:
        for figures in STEPS[step](run):
            yield {"step": step, "model": BUILT_IN, "threads": run.threads} | figures


@dataclass(frozen=True, slots=True)
class _Run:
    """The options and texts that all steps share."""

    args: Namespace
    work: Path
    tasks: Sequence[RetrievalTask]
    threads: int

    def index(self, folder: Path, home: Path, **arguments: Any) -> dict[str, Message]:
        """Index a folder in a child process, and return its messages by kind."""
        log = self.work / f"{home.name}.log"
        request = {"folder": str(folder), "home": str(home), "threads": self.threads} | arguments
        return {message["kind"]: message for message in run_task(INDEX, request, self.threads, log)}


def _ingest(run: _Run) -> Iterator[Figures]:
    """Yield figures of many small files: use of the model, memory, a second run, and searches."""
    folder, home = run.work / "small", run.work / "small-index"
    files = corpora.small_files(run.tasks, folder, run.args.files)
    say(f"indexing {len(files):,} small files")
    messages = run.index(folder, home, alone=True)
    told, alone = messages["indexed"], messages["alone"]
    rate, rate_alone = told["tokens"] / told["seconds"], alone["tokens"] / alone["seconds"]
    about = {"files": len(files), "bytes": directory_bytes(folder), "told": told, "alone": alone}
    name = f"{len(files):,} small files"
    yield about | _figure(f"{name}: model busy", 100 * told["computed"] / told["span"], "%", _BUSY, at_least=True)
    yield _figure(f"{name}: encode_streams alone: model busy", 100 * alone["computed"] / alone["seconds"], "%")
    yield _figure(f"{name}: whole run", rate, "tokens/s")
    yield _figure(f"{name}: encode_streams alone", rate_alone, "tokens/s")
    yield _figure(f"{name}: whole run ÷ encode_streams", rate / rate_alone, "")
    yield _figure(f"{name}: files a second", told["files"] / told["seconds"], "/s")
    yield from _memory(name, told)
    yield _figure(f"{name}: index for text, 256-token chunks", told["index_bytes"] / about["bytes"], "MB/MB")
    yield _updates(run, home, len(files), f"{name}: second run", None)
    yield from _finding(run, files, folder, home)


def _finding(run: _Run, files: Sequence[SmallFile], folder: Path, home: Path) -> Iterator[Figures]:
    """Yield how well each way finds the file that answers a question, and how fast."""
    questions = _questions(run, files)
    say(f"asking {len(questions):,} questions")
    with (
        pplx_edge.load(BUILT_IN, offline=True, threads=run.threads) as model,
        Store.open(home, threads=run.threads) as store,
    ):
        for name, find in finders(folder, [file.path for file in files], store, model, run.work).items():
            find(questions[0][0])
            seconds, first, among = [], 0, 0
            for question, right in questions:
                started = time.perf_counter()
                found = find(question)
                seconds.append(time.perf_counter() - started)
                first += found[:1] == [right]
                among += right in found
            n = len(questions)
            shares = {"first": first / n, "among": among / n, "questions": n, "seconds": seconds}
            yield shares | _figure(name, 1000 * statistics.median(seconds), "ms a question")


def _questions(run: _Run, files: Sequence[SmallFile]) -> list[tuple[str, Path]]:
    """Return a fixed random sample of questions that exactly one file answers, with that file."""
    paths = {(file.task, file.passage.id): file.path for file in files}
    found = []
    for task in run.tasks:
        for query in task.queries:
            names = [(task.name, passage) for passage in task.relevant(query.id)]
            right = [paths[name] for name in names if name in paths]
            if len(right) == 1:
                found.append((query.text, right[0]))
    if not found:
        raise InputError(f"--files {len(files):,}: no question of the tasks is answered by one of them; ask for more")
    return random.Random(0).sample(found, min(run.args.asked, len(found)))


def _rescan(run: _Run) -> Iterator[Figures]:
    """Yield the time of the command for a folder without changes."""
    folder, home, count = run.work / "tiny", run.work / "tiny-index", run.args.rescan
    say(f"writing and indexing {count:,} tiny files, without the model")
    paths = corpora.tiny_files(folder, count)
    with pplx_edge.load(BUILT_IN, offline=True, threads=run.threads) as model:
        index_files(paths, folder, home, model)
    yield _updates(run, home, count, f"{count:,} unchanged files: pplx-search update", _RESCAN)


def _large(run: _Run) -> Iterator[Figures]:
    """Yield the memory for large files. Each is stored before its first vector is computed, then the run is stopped."""
    texts = [passage.text for task in run.tasks for passage in task.corpus if passage.text]
    n_bytes = int(run.args.large_mb * _MB)
    corpora.large_text(corpora.without_end(texts), run.work / "text" / "large.txt", n_bytes)
    yield from _large_folder(run, "text", f"a text of {run.args.large_mb:g} MB")
    part = n_bytes // _LARGE_SHARE
    corpora.large_mailbox(corpora.without_end(texts), run.work / "mail" / "mail.mbox", part)
    yield from _large_folder(run, "mail", f"a mailbox of {part / _MB:g} MB")
    corpora.large_table(corpora.without_end(texts), run.work / "table" / "table.csv", part)
    yield from _large_folder(run, "table", f"a table of {part / _MB:g} MB")
    if n_pdfs := corpora.copy_pdfs(run.args.data, run.work / "pdf"):
        yield from _large_folder(run, "pdf", f"{n_pdfs} PDFs")


def _large_folder(run: _Run, folder: str, name: str) -> Iterator[Figures]:
    say(f"indexing {name}")
    told = run.index(run.work / folder, run.work / f"{folder}-index", stop_after=run.args.stop_after)["indexed"]
    yield {"told": told} | _figure(f"{name}: until the first vector", told["seconds"] - told["span"], "s")
    yield from _memory(name, told)


def _start(run: _Run) -> Iterator[Figures]:
    """Yield the time of a search in a new process, with the files in the page cache."""
    home, count = run.work / "start-index", run.args.start_chunks
    say(f"making an index of {count:,} chunks")
    with pplx_edge.load(BUILT_IN, offline=True, threads=run.threads) as model:
        questions = _index_chunks(count, home, model, run.threads)
    asked = [questions[i % len(questions)] for i in range(run.args.starts)]
    program.search(home, asked[0], run.threads)
    seconds = [program.search(home, question, run.threads) for question in asked]
    name = f"{count:,} chunks: pplx-search search"
    yield {"seconds": seconds} | _figure(f"{name}, p50", statistics.median(seconds), "s", _START)
    yield _figure(f"{name}, slowest of {len(seconds)}", max(seconds), "s")
    phases = [program.search_in_phases(home, question, run.threads) for question in asked]
    for phase in phases[0]:
        yield _figure(f"  {phase}", statistics.median(each[phase] for each in phases), "s")


def _index_chunks(n_chunks: int, home: Path, model: Embedder, threads: int) -> list[str]:
    """Index synthetic chunks as if `model` had encoded them, and return questions with their words."""
    chunks = Chunks(n_chunks, model.dim)
    build(chunks, np.concatenate(list(chunks.vectors())), home, settings_of(BUILT_IN, model, options_for(model)))
    with Store.open(home, write=True, threads=threads) as store:
        assert store.vectors.serving is not None  # it was just created
        measure_null_baseline(store, model, store.vectors.serving)  # as indexing does at its end
    return chunks.questions(10)


def _size(run: _Run) -> Iterator[Figures]:
    """Yield the size of an index with 512-token chunks after compaction, relative to its text."""
    folder = run.work / "books"
    corpora.book_files(run.args.data, run.tasks, folder, int(run.args.size_mb * _MB))
    n_bytes = directory_bytes(folder)
    say(f"indexing {n_bytes / _MB:.1f} MB of books and passages")
    told = run.index(folder, run.work / "books-index", chunk_tokens=_SIZE_CHUNK_TOKENS)["indexed"]
    name = f"{n_bytes / _MB:.1f} MB of text, {_SIZE_CHUNK_TOKENS}-token chunks: index"
    yield {"bytes": n_bytes, "told": told} | _figure(name, told["index_bytes"] / n_bytes, "MB/MB", _SIZE)


def _updates(run: _Run, home: Path, n_files: int, name: str, bound: float | None) -> Figures:
    """Return the time of the command, including its start and opening the model, after one run to warm up."""
    first, *seconds = [program.update(home, n_files, run.threads) for _ in range(1 + _UPDATES)]
    return {"first_seconds": first, "seconds": seconds} | _figure(name, statistics.median(seconds), "s", bound)


def _memory(name: str, told: Message) -> Iterator[Figures]:
    yield _figure(f"{name}: peak RSS", told["rss"] / _MB, "MB", _RSS)
    yield _figure(f"{name}: of it before the first vector", told["rss_before"] / _MB, "MB")
    yield _figure(f"{name}: largest process of a parser", told["children_rss"] / _MB, "MB")


def _figure(what: str, value: float, unit: str, bound: float | None = None, *, at_least: bool = False) -> Figures:
    return {"what": what, "value": value, "unit": unit, "bound": bound, "at_least": at_least}


STEPS: dict[str, Callable[[_Run], Iterator[Figures]]] = {
    "ingest": _ingest,
    "rescan": _rescan,
    "large": _large,
    "start": _start,
    "size": _size,
}
