"""Measure every system on every task in every context. A task is encoded once and ranked for each variant."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from pplx_bench.quality.systems import System, Variant
from pplx_bench.results import Result, Results
from pplx_bench.retrieval.beir import RetrievalTask
from pplx_bench.retrieval.encoders import Context, Encoded, Encoder, document_texts, passage_texts
from pplx_bench.retrieval.metrics import DEPTH, MAIN, evaluate_task
from pplx_bench.retrieval.ranking import rank_means
from pplx_bench.workdir import require_free, say
from pplx_edge.files import replacing_file, storage_errors

_TENSOR = "means"


def measure(
    tasks: Sequence[RetrievalTask],
    systems: Sequence[System],
    contexts: Sequence[Context],
    results: Results,
    vectors: Path | None = None,
) -> Iterator[Result]:
    """Yield a result for every possible combination of system, task, context and variant.

    `vectors` is a folder that keeps vectors on disk, so that a later run does not encode the same texts again.
    """
    for system in systems:
        opened = cache(system.open) if system.open else None
        for task in tasks:
            for context in contexts:
                if context not in system.contexts or not _applies(context, task):
                    continue
                prepared = cache(partial(_prepare, system, opened, task, context, vectors))
                for variant in system.variants:
                    result = results.get(
                        _inputs(system, task, context, variant),
                        lambda task=task, prepared=prepared, variant=variant: _score(task, prepared(), variant),
                        system=system.label,
                        model=system.model,
                        format=system.format,
                        task=task.name,
                    )
                    say(progress_line(result))
                    yield result
        if opened is not None and opened.cache_info().currsize:
            opened().close()


def progress_line(result: Result) -> str:
    """Return a line about one result."""
    rate = f", {result['tokens_per_second']:,.0f} tokens/s" if result["tokens_per_second"] else ""
    cut = f", {result['counts']['texts_cut']:,} texts truncated" if result["counts"]["texts_cut"] else ""
    where = "" if result["context"] == "off" else f" context {result['context']}"
    dim = "" if result["native"] else f" {result['dim']}d"
    return (
        f"{result['system']} {result['precision']}{dim}{where}, "
        f"{result['task']}: nDCG@10 {100 * result['metrics'][MAIN]:.2f}{rate}{cut}"
    )


def _applies(context: Context, task: RetrievalTask) -> bool:
    """Return True if a task has what a context needs: pieces of documents, or titles."""
    if context == "on":
        return task.is_contextual
    return context == "off" or any(passage.title for passage in task.corpus)


def _inputs(system: System, task: RetrievalTask, context: Context, variant: Variant) -> dict[str, Any]:
    return {
        "system_hash": system.digest,
        "task_hash": task.digest[:16],
        "context": context,
        "precision": variant.precision,
        "dim": variant.dim,
        "native": variant.dim is None,
        "max_tokens": system.max_tokens,
        "window": system.window if context == "on" else None,
    }


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A task in a context, encoded: the ranking of each variant, the dimension of the vectors, and the cost."""

    rank: Callable[[Variant], np.ndarray]
    dim: int | None = None
    costs: Sequence[Encoded] = ()


def _prepare(
    system: System,
    opened: Callable[[], Encoder] | None,
    task: RetrievalTask,
    context: Context,
    folder: Path | None,
) -> _Prepared:
    queries = [query.text for query in task.queries]
    if opened is None:
        from pplx_bench.retrieval.bm25 import rank_by_terms

        texts = passage_texts(task, context)
        return _Prepared(lambda variant: rank_by_terms(queries, texts, DEPTH))

    def encoded(texts: list[str]) -> Encoded:
        return _kept(folder, [system.digest, system.max_tokens, texts], lambda: opened().texts(texts))

    asked = encoded(queries)  # queries are the same in every context
    if context == "on":
        documents = document_texts(task)
        inputs = [system.digest, system.window, documents]
        found = _kept(folder, inputs, lambda: opened().documents(documents)).in_corpus_order(task.documents)
    else:
        found = encoded(passage_texts(task, context))
    return _Prepared(
        lambda variant: rank_means(asked.means, found.means, variant.precision, DEPTH, variant.dim),
        found.means.shape[1],
        (found, asked),
    )


def _score(task: RetrievalTask, prepared: _Prepared, variant: Variant) -> dict[str, Any]:
    tokens, seconds = sum(cost.n_tokens for cost in prepared.costs), sum(cost.seconds for cost in prepared.costs)
    return {
        "dim": variant.dim or prepared.dim,
        "metrics": evaluate_task(task, prepared.rank(variant)),
        "counts": {
            "passages": len(task.corpus),
            "documents": len(task.documents),
            "queries": len(task.queries),
            "judgments": sum(map(len, task.qrels.values())),
            "queries_left_out": task.left_out,
            "tokens": tokens,
            "texts_cut": sum(cost.n_cut for cost in prepared.costs),
            "windows": sum(cost.n_windows for cost in prepared.costs),
        },
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
    }


def _kept(folder: Path | None, inputs: list[Any], make: Callable[[], Encoded]) -> Encoded:
    """Return the vectors made from these inputs, from a file in the folder or from `make`; None keeps nothing.

    Raises StorageError if the disk is full.
    """
    if folder is None:
        return make()
    path = folder / f"{hashlib.sha256(json.dumps(inputs, ensure_ascii=False).encode()).hexdigest()[:32]}.safetensors"
    with suppress(FileNotFoundError, SafetensorError), safe_open(path, framework="numpy") as file:
        return Encoded(file.get_tensor(_TENSOR), **json.loads(file.metadata()["encoded"]))
    found = make()
    about = asdict(found)
    require_free(folder, found.means.nbytes)
    with storage_errors(path), replacing_file(path) as unfinished:
        save_file({_TENSOR: about.pop("means")}, unfinished, metadata={"encoded": json.dumps(about)})
    return found
