"""`--what many`: thousands of small documents through `encode_streams`, beside `encode` of the same texts."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from pplx_bench.retrieval.beir import RetrievalTask, read_task
from pplx_bench.streams.counting import counted
from pplx_bench.timing import CpuWatch, spread
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError
from pplx_edge.types import StreamOptions


def small_documents(folders: Iterable[Path], n_documents: int) -> list[str]:
    """The first passages of the tasks that are not pieces of documents, until there are so many.

    Raises InputError when there are none.
    """
    tasks: Iterable[RetrievalTask] = (read_task(folder) for folder in folders)
    texts = (p.text.strip() for task in tasks if not task.is_contextual for p in task.corpus if p.text.strip())
    found = list(islice(texts, n_documents))
    if not found:
        raise InputError("no task whose passages are documents of their own; name some with --tasks")
    return found


def measure_many(embedder: Embedder, texts: Sequence[str], options: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    """Seconds of both ways, in turn, `repeats` times each after a warm-up, and how far their vectors agree.

    `agree` is the share of documents in one chunk whose codes are those of `encode`.
    """
    embedder, session = counted(embedder)
    stream_options = StreamOptions(**options)

    def encoded() -> np.ndarray:
        return embedder.encode(texts, show_progress=False)

    def streamed() -> list[Any]:
        return list(embedder.encode_streams(texts, "int8", options=stream_options))

    vectors, chunks = encoded(), streamed()
    computed = {}
    watch = CpuWatch()
    seconds: dict[str, list[float]] = {"encode": [], "stream": []}
    for _ in range(repeats):
        for name, way in (("encode", encoded), ("stream", streamed)):
            before, passes = session.n_tokens, session.n_passes
            seconds[name].append(_seconds(way))
            computed[name] = {"tokens": session.n_tokens - before, "passes": session.n_passes - passes}
    by_document: dict[int, list[np.ndarray]] = {}
    for i, chunk in chunks:
        by_document.setdefault(i, []).append(chunk.codes)
    single = [i for i, codes in by_document.items() if len(codes) == 1]
    agreeing = sum(bool(np.array_equal(by_document[i][0], vectors[i])) for i in single)
    return {
        "documents": len(texts),
        "chunks": len(chunks),
        "single": len(single),
        "agree": agreeing / len(single) if single else None,
        "seconds": {name: median(samples) for name, samples in seconds.items()},
        "spread": {name: spread(samples) for name, samples in seconds.items()},
        "computed": computed,
        "ratio": median(seconds["encode"]) / median(seconds["stream"]),
        "others": watch.others(),
    }


def _seconds(way: Callable[[], object]) -> float:
    started = time.perf_counter()
    way()
    return time.perf_counter() - started
