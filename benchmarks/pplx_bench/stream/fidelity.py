"""Vectors of windows compared with those of the full context, and their cost, by window and margin."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pplx_bench.metering import MeteredSession, metered
from pplx_bench.options import comma_list, list_of
from pplx_bench.results import Result, Results
from pplx_bench.stream.books import sections
from pplx_bench.stream.setup import Setup
from pplx_bench.timing import CpuWatch
from pplx_bench.workdir import say
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.types import ChunkVector, StreamOptions
from pplx_edge.vectors.codes import quantize
from pplx_edge.vectors.late_chunking import WindowSizes
from pplx_edge.vectors.similarity import paired_cosines
from pplx_kit.options import natural, positive

CLOSE = 0.002  # settings within this of the best mean cosine count as equally faithful


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    add = group.add_argument
    windows, margins = [512, 1024, 2048, 4096], [0, 32, 64, 128, 256, 512, 1024]
    add(
        "--windows",
        type=list_of(positive),
        default=windows,
        metavar="N,N",
        help="Sizes of windows to compare, in tokens.",
    )
    add(
        "--margins",
        type=list_of(natural),
        default=margins,
        metavar="N,N",
        help="Margins to compare: tokens of context at each end of a window.",
    )
    add(
        "--sections",
        type=positive,
        default=8,
        metavar="N",
        help="Number of sections that are cut from the books, each as long as the model reads.",
    )
    add(
        "--books",
        type=comma_list,
        metavar="ID,ID",
        help="Only use the documents with these IDs in longdocs.jsonl.gz (default: all).",
    )


def measure(setup: Setup) -> list[Result]:
    """Return a result for the full context and for each window and margin. Sections leave room for separators."""
    args, most = setup.args, setup.embedder.max_tokens
    n_tokens = most - 2 * (most // args.chunk_tokens) - args.chunk_tokens
    texts = sections(setup.books(args.books), setup.embedder.tokenizer, n_tokens, args.sections)
    windows = [window for window in args.windows if window <= most]
    inputs = setup.inputs(books_hash=setup.books_hash, sections=args.sections, books=args.books)
    return measure_fidelity(setup.embedder, texts, windows, args.margins, setup.chunk_options, inputs, setup.results)


def measure_fidelity(
    embedder: Embedder,
    documents: Sequence[str],
    windows: Sequence[int],
    margins: Sequence[int],
    options: Mapping[str, Any],
    inputs: Mapping[str, Any],
    results: Results,
) -> list[Result]:
    """Return a result for the full context and for each window and margin that a stream can have.

    Raises InputError if a document does not fit the model in one pass.
    """
    embedder, session = metered(embedder)
    whole: list[tuple[list[ChunkVector], dict[str, Any]]] = []

    def references() -> list[tuple[list[ChunkVector], dict[str, Any]]]:
        for i, text in enumerate(documents[len(whole) :], start=len(whole)):
            vectors, cost = _streamed(embedder, session, text, {**options, "window": embedder.max_tokens, "margin": 0})
            if cost["passes"] != 1:
                raise InputError(f"document {i} took {cost['passes']} passes; it must fit the model's maximum")
            whole.append((vectors, cost))
        return whole

    def windowed(setting: Mapping[str, int]) -> dict[str, Any]:
        closeness, costs = [], []
        for text, (chunks, _) in zip(documents, references(), strict=True):
            vectors, cost = _streamed(embedder, session, text, {**options, **setting})
            if [(v.start, v.stop) for v in vectors] != [(v.start, v.stop) for v in chunks]:
                raise InputError(f"window {setting['window']} cut the document into other chunks than the full context")
            means = (np.stack([vector.codes for vector in each]) for each in (chunks, vectors))
            closeness.append(compare(*means))
            costs.append(cost)
        return _joined(closeness) | _summed(costs)

    inputs = {"what": "fidelity", **inputs}
    full = {"window": embedder.max_tokens, "margin": None, "kind": "full context"}
    found = [results.get({**inputs, **full}, lambda: _summed([cost for _, cost in references()]))]
    settings = [{"window": window, "margin": margin} for window in windows for margin in margins]
    for setting in settings:
        if has_room(setting, session.spec):
            made_of = {**inputs, **setting, "kind": "windowed"}
            result = results.get(made_of, lambda setting=setting: windowed(setting))
            say(
                f"window {setting['window']}, margin {setting['margin']}: mean cosine {result['cosine_mean']:.5f}, "
                f"{result['tokens_computed'] / result['tokens']:.2f} tokens computed per token"
            )
            found.append(result)
    return found


def has_room(setting: Mapping[str, Any], spec: ModelSpec) -> bool:
    """Return True if a stream can have this window and margin."""
    try:
        WindowSizes.of(StreamOptions(**setting), spec)
    except InputError:
        return False
    return True


def compare(full: np.ndarray, windowed: np.ndarray) -> dict[str, Any]:
    """Return the cosines of paired rows, float32 `[N, D]`, and how many int8 codes changed, for one document."""
    cosines = paired_cosines(full, windowed)
    steps = np.abs(quantize(full, "int8").astype(np.int16) - quantize(windowed, "int8"))
    return {
        "chunks": len(cosines),
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "codes_moved": float((steps > 0).mean()),
        "largest_step": int(steps.max()),
    }


def recommended(results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the fastest setting, then the smallest window, among those with a mean cosine within CLOSE of the best."""
    windowed = [result for result in results if result["margin"] is not None]
    best = max((result["cosine_mean"] for result in windowed), default=0.0)
    close = [result for result in windowed if result["cosine_mean"] >= best - CLOSE]
    return min(close, key=lambda r: (r["seconds"] / r["tokens"], r["window"]), default=None)


def _streamed(
    embedder: Embedder, session: MeteredSession, text: str, options: Mapping[str, Any]
) -> tuple[list[ChunkVector], dict[str, Any]]:
    """Return the vectors of a document as float32 means, and their cost."""
    computed, passes, watch = session.n_tokens, session.n_passes, CpuWatch()
    started = time.perf_counter()
    vectors = list(embedder.encode_stream(text, "float32", options=StreamOptions(**options)))
    cost = {
        "seconds": time.perf_counter() - started,
        "tokens": sum(vector.tokens for vector in vectors),
        "tokens_computed": session.n_tokens - computed,
        "passes": session.n_passes - passes,
        "others": watch.others(),
    }
    return vectors, cost


def _summed(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the total cost of documents; `others` is the largest of any document."""
    total = {name: sum(cost[name] for cost in costs) for name in ("seconds", "tokens", "tokens_computed", "passes")}
    others = max((cost["others"] for cost in costs if cost["others"] is not None), default=None)
    return {"documents": len(costs), **total, "others": others}


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the figures of all documents; means are weighted by chunks."""
    weights = [part["chunks"] for part in parts]
    return {
        "chunks": sum(weights),
        "cosine_mean": float(np.average([part["cosine_mean"] for part in parts], weights=weights)),
        "cosine_min": min(part["cosine_min"] for part in parts),
        "codes_moved": float(np.average([part["codes_moved"] for part in parts], weights=weights)),
        "largest_step": max(part["largest_step"] for part in parts),
    }
