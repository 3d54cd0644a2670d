"""Peak resident sets, mapped file pages included, of converting a checkpoint and of opening and running the result."""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplx_bench.child import Send
from pplx_bench.convert.measure import convert_to, run_limited
from pplx_bench.machine import peak_rss
from pplx_bench.workdir import directory_bytes, require_free, say

FORMAT = "onnx-int8"


@dataclass(frozen=True, slots=True)
class Limit:
    """A measurement and the peak in GB that it must stay below; None if there is no limit."""

    name: str
    gigabytes: float | None
    n_tokens: int = 0  # 0: the conversion


LIMITS = {
    "tiny": (Limit("convert", None), Limit("open, encode 512 tokens", None, 512)),
    "0.6b": (
        Limit("convert", 1.5),
        Limit("open, encode 512 tokens", 1.0, 512),
        Limit("open, encode 8192 tokens", 2.0, 8192),
    ),
    "4b": (Limit("convert", 4.0), Limit("open, encode 512 tokens", None, 512)),
}


def measure(shape: str, checkpoint: Path, threads: int, work: Path) -> Iterator[dict[str, Any]]:
    """Yield a result for each limit of a shape: the conversion first, then what opens its artifact."""
    artifact = work / f"memory-{checkpoint.name}"
    require_free(artifact, directory_bytes(checkpoint))
    try:
        for limit in LIMITS[shape]:
            say(limit.name)
            yield measure_limit(limit, checkpoint, artifact, threads, work / "logs")
    finally:
        shutil.rmtree(artifact, ignore_errors=True)


def measure_limit(limit: Limit, checkpoint: Path, artifact: Path, threads: int, logs: Path) -> dict[str, Any]:
    """Return one result. It is `passed` if the peak is below the limit and torch was not imported."""
    if limit.n_tokens:
        task, request = encode_once, {"artifact": str(artifact), "threads": threads, "n_tokens": limit.n_tokens}
    else:
        task, request = convert_to, {"checkpoint": str(checkpoint), "out": str(artifact), "format": FORMAT}
    result = run_limited(task, request, threads, logs / f"memory-{task.__name__}.log", limit.gigabytes)
    passed = result["passed"] and not result["torch"]
    return result | {"kind": "memory", "name": limit.name, "passed": passed}


def encode_once(arguments: Mapping[str, Any], send: Send) -> None:
    """In a child: open a model with its tokenizer, encode one text of `n_tokens` tokens, and send the peak memory."""
    import pplx_edge
    from pplx_edge.text.batching import collate
    from pplx_edge.vectors.codes import quantize

    started = time.perf_counter()
    embedder = pplx_edge.load(arguments["artifact"], threads=arguments["threads"])
    opened, opened_rss = time.perf_counter() - started, peak_rss()
    letters = np.random.default_rng(0).integers(ord("a"), ord("z") + 1, 8 * arguments["n_tokens"])
    (row,) = embedder.tokenizer.text_rows(["".join(map(chr, letters))])
    row = row.cut(arguments["n_tokens"])
    codes = quantize(embedder.session.span_means(collate([row], embedder.tokenizer.sep_id)), "int8")
    send(
        {
            "kind": "memory",
            "rss": peak_rss(),
            "tokens": len(row),
            "dim": codes.shape[1],
            "seconds": time.perf_counter() - started,
            "load_seconds": opened,
            "opened_rss": opened_rss,
            "torch": "torch" in sys.modules,
        }
    )
