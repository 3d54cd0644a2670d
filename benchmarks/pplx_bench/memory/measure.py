"""Peak resident sets, mapped file pages included, of converting a checkpoint and of opening and running the result."""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplx_bench.child import Send
from pplx_bench.convert.measure import convert_to, run_limited
from pplx_bench.machine import peak_rss
from pplx_bench.workdir import directory_bytes, require_free, say
from pplx_edge.registry import require_format


@dataclass(frozen=True, slots=True)
class Limit:
    """A measurement and the peak in GB that it must stay below; None if there is no limit."""

    name: str
    gigabytes: float | None
    n_tokens: int = 0  # 0: the conversion


def _limits(convert: float | None, short: float | None, long: float | None = None) -> tuple[Limit, ...]:
    """Return the limits of a shape in GB, those for 8,192 tokens only if there is one."""
    of_long = () if long is None else (Limit("open, encode 8192 tokens", long, 8192),)
    return Limit("convert", convert), Limit("open, encode 512 tokens", short, 512), *of_long


LIMITS = {
    "native-int8": {
        "tiny": _limits(None, None),
        "nano": _limits(None, 0.12),
        "0.6b": _limits(1.5, 0.75, 0.9),
        "4b": _limits(4.0, None),
    },
    "native-int4": {
        "tiny": _limits(None, None),
        "nano": _limits(None, 0.12),
        "0.6b": _limits(1.5, 0.55, 0.7),
        "4b": _limits(4.0, None),
    },
    "onnx-int8": {
        "tiny": _limits(None, None),
        "nano": _limits(None, None),
        "0.6b": _limits(1.5, 1.0, 2.0),
        "4b": _limits(4.0, None),
    },
}


def measure(shape: str, formats: Sequence[str], checkpoint: Path, threads: int, work: Path) -> Iterator[dict[str, Any]]:
    """Yield a result for each format and limit of a shape: the conversion first, then what opens its artifact."""
    artifact = work / f"memory-{checkpoint.name}"
    require_free(artifact, directory_bytes(checkpoint))
    for name in formats:
        try:
            for limit in LIMITS[name][shape]:
                say(f"{name}: {limit.name}")
                yield measure_limit(limit, name, checkpoint, artifact, threads, work / "logs")
        finally:
            shutil.rmtree(artifact, ignore_errors=True)


def measure_limit(
    limit: Limit, artifact_format: str, checkpoint: Path, artifact: Path, threads: int, logs: Path
) -> dict[str, Any]:
    """Return one result. It is `passed` if the peak is below the limit and torch was not imported."""
    if limit.n_tokens:
        task, request = encode_once, {"artifact": str(artifact), "threads": threads, "n_tokens": limit.n_tokens}
        request["backend"] = require_format(artifact_format).name
    else:
        task, request = convert_to, {"checkpoint": str(checkpoint), "out": str(artifact), "format": artifact_format}
    result = run_limited(task, request, threads, logs / f"memory-{task.__name__}.log", limit.gigabytes)
    passed = result["passed"] and not result["torch"]
    return result | {"kind": "memory", "format": artifact_format, "name": limit.name, "passed": passed}


def encode_once(arguments: Mapping[str, Any], send: Send) -> None:
    """In a child: open a model with its tokenizer, encode one text of `n_tokens` tokens, and send the peak memory."""
    import pplx_edge
    from pplx_edge.text.batching import collate
    from pplx_edge.vectors.codes import quantize

    started = time.perf_counter()
    embedder = pplx_edge.load(arguments["artifact"], backend=arguments["backend"], threads=arguments["threads"])
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
