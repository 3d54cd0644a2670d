"""Conversions of a checkpoint, each in a child process."""

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pplx_bench.child import ChildFailed, Send, run_task
from pplx_bench.machine import peak_rss
from pplx_bench.workdir import directory_bytes, require_free, say

TASK_TIMEOUT = 7200.0
GIGABYTE = 1e9


def measure(
    checkpoint: Path, formats: Sequence[str], threads: int, work: Path, keep: Path | None, limit_gb: float | None
) -> Iterator[dict[str, Any]]:
    """Yield the result of converting a checkpoint to each format.

    The converted models are left in `keep`, in a folder per format, or deleted if it is None. A result is `passed` if
    the conversion succeeded and its peak memory is below `limit_gb` (None: no limit).
    """
    folder = keep or work / "convert"
    require_free(folder, 2 * directory_bytes(checkpoint))
    try:
        for artifact_format in formats:
            say(artifact_format)
            request = {"checkpoint": str(checkpoint), "out": str(folder / artifact_format), "format": artifact_format}
            result = run_limited(
                convert_to, request, threads, work / "logs" / f"convert-{artifact_format}.log", limit_gb
            )
            yield result | {"format": artifact_format}
            if keep is None:
                shutil.rmtree(folder / artifact_format, ignore_errors=True)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)


def run_limited(
    task: Any, arguments: Mapping[str, Any], threads: int, log: Path, limit_gb: float | None
) -> dict[str, Any]:
    """Return the only message of a task that sends its peak memory in `rss`, with `limit_gb` and `passed`.

    A task that fails has `error` instead of figures.
    """
    try:
        (message,) = run_task(f"{task.__module__}:{task.__name__}", arguments, threads, log, TASK_TIMEOUT)
    except ChildFailed as error:
        return {"limit_gb": limit_gb, "passed": False, "error": str(error)}
    return message | {"limit_gb": limit_gb, "passed": limit_gb is None or message["rss"] < limit_gb * GIGABYTE}


def convert_to(arguments: Mapping[str, Any], send: Send) -> None:
    """In a child: convert, and send the figures of the conversion and whether torch is loaded."""
    from pplx_convert import convert

    started, opened = time.perf_counter(), peak_rss()
    artifact = convert(arguments["checkpoint"], arguments["out"], arguments["format"], replace=True)
    seconds = time.perf_counter() - started
    send(
        {
            "kind": "converted",
            "seconds": seconds,
            "rss": peak_rss(),
            "start_rss": opened,
            "torch": "torch" in sys.modules,
            "bytes": sum(entry["bytes"] for entry in artifact.files.values()),
            "parity": dict(artifact.parity),
            "weights": dict(artifact.weights),
        }
    )
