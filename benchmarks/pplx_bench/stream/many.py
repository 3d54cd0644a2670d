"""Thousands of small documents through `encode_streams`, and the same texts through `encode`."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pplx_bench.metering import metered
from pplx_bench.options import comma_list
from pplx_bench.results import Result
from pplx_bench.retrieval.beir import read_task, task_folders
from pplx_bench.stream.setup import Setup
from pplx_bench.timing import CpuWatch, spread
from pplx_bench.workdir import say
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError
from pplx_edge.types import StreamOptions
from pplx_kit.options import positive


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    add = group.add_argument
    add("--tasks", type=comma_list, metavar="T,T", help="Take the documents from these tasks (default: all).")
    add("--documents", type=positive, default=3000, metavar="N", help="Number of documents.")
    add("--repeats", type=positive, default=5, metavar="N", help="Number of timings, of which the median counts.")


def measure(setup: Setup) -> list[Result]:
    """Return the one result."""
    args = setup.args
    texts = small_documents(task_folders([args.data], args.tasks), args.documents)
    inputs = setup.inputs(documents=len(texts), tasks=args.tasks, repeats=args.repeats, threads=setup.threads)
    say(f"many: {len(texts):,} documents, {args.repeats + 1} times each way")

    def make() -> dict[str, Any]:
        return measure_many(setup.embedder, texts, setup.chunk_options, args.repeats)

    return [setup.results.get({"what": "many", **inputs}, make)]


def small_documents(folders: Iterable[Path], n_documents: int) -> list[str]:
    """Return up to `n_documents` passages of tasks whose passages are not pieces of documents.

    Raises InputError if there are none.
    """
    tasks = (read_task(folder) for folder in folders)
    texts = (p.text.strip() for task in tasks if not task.is_contextual for p in task.corpus if p.text.strip())
    found = list(islice(texts, n_documents))
    if not found:
        raise InputError("no task whose passages are documents of their own; name some with --tasks")
    return found


def measure_many(embedder: Embedder, texts: Sequence[str], options: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    """Return the seconds of both ways, timed `repeats` times in turn after a warm-up, and how far their codes agree.

    `agree` is the share of documents of a single chunk whose codes equal those of `encode`.
    """
    embedder, session = metered(embedder)
    stream_options = StreamOptions(**options)
    ways: dict[str, Callable[[], Any]] = {
        "encode": lambda: embedder.encode(texts, show_progress=False),
        "stream": lambda: list(embedder.encode_streams(texts, "int8", options=stream_options)),
    }
    vectors, chunks = ways["encode"](), ways["stream"]()
    computed = {}
    watch = CpuWatch()
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            tokens, passes, started = session.n_tokens, session.n_passes, time.perf_counter()
            way()
            samples[name].append(time.perf_counter() - started)
            computed[name] = {"tokens": session.n_tokens - tokens, "passes": session.n_passes - passes}
    by_document: dict[int, list[np.ndarray]] = {}
    for i, chunk in chunks:
        by_document.setdefault(i, []).append(chunk.codes)
    single = [i for i, codes in by_document.items() if len(codes) == 1]
    agreeing = sum(bool(np.array_equal(by_document[i][0], vectors[i])) for i in single)
    seconds = {name: median(each) for name, each in samples.items()}
    return {
        "documents": len(texts),
        "chunks": len(chunks),
        "single": len(single),
        "agree": agreeing / len(single) if single else None,
        "seconds": seconds,
        "spread": {name: spread(each) for name, each in samples.items()},
        "computed": computed,
        "ratio": seconds["encode"] / seconds["stream"],
        "others": watch.others(),
    }
