"""`--what fidelity`: vectors of windows against those of the full context, and what they cost, by window and margin."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pplx_bench.streams.counting import CountingSession, counted
from pplx_bench.streams.results import Result, Results
from pplx_bench.timing import CpuWatch
from pplx_bench.workdir import say
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.types import ChunkVector, StreamOptions
from pplx_edge.vectors.codes import quantize
from pplx_edge.vectors.late_chunking import WindowSizes
from pplx_edge.vectors.similarity import paired_cosines

FULL = "full context"
CLOSE = 0.002  # of mean cosine: settings as faithful as the best, for what difference this makes


def measure_fidelity(
    embedder: Embedder,
    documents: Sequence[str],
    windows: Sequence[int],
    margins: Sequence[int],
    options: Mapping[str, Any],
    made_of: Mapping[str, Any],
    results: Results,
) -> list[Result]:
    """A result for the full context and for each window and margin that a stream can have.

    Raises InputError when a document does not fit the model in one pass.
    """
    embedder, session = counted(embedder)
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
            closeness.append(compare(_means(chunks), _means(vectors)))
            costs.append(cost)
        return _joined(closeness) | _summed(costs)

    about = {**made_of, "window": embedder.max_tokens, "margin": None, "kind": FULL}
    found = [results.get("fidelity", about, lambda: _summed([cost for _, cost in references()]))]
    for window in windows:
        for margin in margins:
            setting = {"window": window, "margin": margin}
            if not has_room(setting, session.spec):
                continue
            result = results.get(
                "fidelity", {**made_of, **setting, "kind": "windowed"}, lambda setting=setting: windowed(setting)
            )
            say(
                f"window {window}, margin {margin}: mean cosine {result['cosine_mean']:.5f}, "
                f"{result['tokens_computed'] / result['tokens']:.2f} tokens computed a token"
            )
            found.append(result)
    return found


def has_room(setting: Mapping[str, Any], spec: ModelSpec) -> bool:
    """Whether a stream can have this window and margin."""
    try:
        WindowSizes.of(StreamOptions(**setting), spec)
    except InputError:
        return False
    return True


def compare(full: np.ndarray, windowed: np.ndarray) -> dict[str, Any]:
    """Cosines of rows, float32 `[N, D]` each, and the int8 codes that moved: figures of one document."""
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
    """The fastest (then the smallest window) among those as faithful as the best: a mean cosine within CLOSE of it.

    None without windows.
    """
    windowed = [result for result in results if result["margin"] is not None]
    if not windowed:
        return None
    best = max(result["cosine_mean"] for result in windowed)
    close = [result for result in windowed if result["cosine_mean"] >= best - CLOSE]
    return min(close, key=lambda r: (r["seconds"] / r["tokens"], r["window"]))


def _streamed(
    embedder: Embedder, session: CountingSession, text: str, options: Mapping[str, Any]
) -> tuple[list[ChunkVector], dict[str, Any]]:
    """The vectors of a document as float32 means, and what they cost."""
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


def _means(vectors: Sequence[ChunkVector]) -> np.ndarray:
    return np.stack([vector.codes for vector in vectors])


def _summed(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Costs of documents together; other processes' share of the cores is the largest of any."""
    total = {name: sum(cost[name] for cost in costs) for name in ("seconds", "tokens", "tokens_computed", "passes")}
    others = [cost["others"] for cost in costs if cost["others"] is not None]
    return {"documents": len(costs), **total, "others": max(others) if others else None}


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of documents together: means by their chunks."""
    weights = [part["chunks"] for part in parts]
    return {
        "chunks": sum(weights),
        "cosine_mean": float(np.average([part["cosine_mean"] for part in parts], weights=weights)),
        "cosine_min": min(part["cosine_min"] for part in parts),
        "codes_moved": float(np.average([part["codes_moved"] for part in parts], weights=weights)),
        "largest_step": max(part["largest_step"] for part in parts),
    }
