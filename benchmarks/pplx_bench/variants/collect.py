"""Run all stages of all variants, each in a child process, and keep every result as soon as it is known."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplx_bench.child import ChildFailed, run_task
from pplx_bench.quality.systems import directory_digest
from pplx_bench.results import FAILED, Result, Results
from pplx_bench.speed.peers import PEERS
from pplx_bench.variants.measure import STAGES
from pplx_bench.variants.variant import Variant
from pplx_bench.workdir import directory_bytes, say
from pplx_edge.registry import BACKENDS, EXACT_FORMAT
from pplx_edge.weights.artifact import is_artifact

CONVERT = "convert"
REFERENCE = "reference.npy"  # the vectors of the reference for the sample of texts
LATE = "not measured: out of time (--minutes); the next run continues here"
_TASKS = {stage: f"pplx_bench.variants.measure:measure_{stage}" for stage in STAGES}
_STAGE_SECONDS = 3600.0
_ROOTS = [path for path in sys.path if path]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is measured on what, and where files are kept. `texts` is the sample for fidelity."""

    checkpoint: Path
    model: str
    directory: Path
    threads: int
    rows: Sequence[str]
    budget: float
    texts: Sequence[str]
    tasks: Sequence[Path]
    task_digests: Sequence[str]
    dims: Sequence[int]
    max_tokens: int


def collect(
    variants: Sequence[Variant], settings: Settings, results: Results, deadline: Callable[[], bool] = lambda: False
) -> list[Result]:
    """Return a result for each stage of each variant. `deadline` tells whether the time is over.

    A result without figures has the reason in `error`.
    """
    digest = directory_digest(settings.checkpoint)
    found = []
    for variant in variants:
        made_of: dict[str, Any] = {"variant": variant.name, "checkpoint": digest, "threads": settings.threads}
        names = {"model": settings.model, "peer": variant.is_peer}
        for stage in (CONVERT, *STAGES):
            if stage == "quality" and not settings.tasks:
                continue
            inputs = made_of | {"stage": stage} | _inputs(stage, settings)
            if deadline() and not results.has(inputs):
                found.append({**names, **inputs, FAILED: LATE})
                continue
            say(f"{variant.name}: {stage}")
            found.append(
                results.get(inputs, lambda stage=stage, variant=variant: _run(stage, variant, settings), **names)
            )
            if FAILED in found[-1]:
                say(f"{variant.name}: {found[-1][FAILED]}")
                if stage == CONVERT:
                    break
    return found


def _inputs(stage: str, settings: Settings) -> dict[str, Any]:
    """Return what the figures of a stage depend on besides the variant."""
    return {
        CONVERT: {},
        "open": {"max_tokens": settings.max_tokens},
        "speed": {"rows": list(settings.rows)},
        "fidelity": {"max_tokens": settings.max_tokens, "texts_hash": _digest(settings.texts)},
        "quality": {
            "max_tokens": settings.max_tokens,
            "dims": list(settings.dims),
            "task_hashes": list(settings.task_digests),
        },
    }[stage]


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts), ensure_ascii=False).encode()).hexdigest()[:16]


def _run(stage: str, variant: Variant, settings: Settings) -> dict[str, Any]:
    directory = settings.directory / "models" / variant.name
    if stage == CONVERT:
        return _convert(variant, directory, settings)
    # Files that were deleted since an earlier run are made again.
    failed = {} if directory.is_dir() else _convert(variant, directory, settings)
    if FAILED in failed:
        return failed
    reference = settings.directory / REFERENCE
    if stage == "fidelity" and variant.name != EXACT_FORMAT and not reference.is_file():
        failed = _run(stage, Variant(name=EXACT_FORMAT), settings)
        if FAILED in failed:
            return failed
    backend = BACKENDS.get(variant.backend)
    arguments = {
        "peer": variant.name if variant.is_peer else "",
        "directory": str(directory),
        "checkpoint": str(settings.checkpoint),
        "backend": variant.backend,
        "has_threads": backend is not None and "threads" in backend.options,
        "threads": settings.threads,
        "max_tokens": settings.max_tokens,
        "rows": list(settings.rows),
        "budget": settings.budget,
        "texts": list(settings.texts),
        "reference": str(reference),
        "is_reference": variant.name == EXACT_FORMAT,
        "tasks": [str(task) for task in settings.tasks],
        "dims": list(settings.dims),
    }
    return _child(_TASKS[stage], arguments, variant, settings, f"{variant.name}-{stage}.log")


def _convert(variant: Variant, directory: Path, settings: Settings) -> dict[str, Any]:
    if variant.is_peer:
        if not PEERS[variant.name].made_by and not PEERS[variant.name].result_bytes:  # it opens the checkpoint itself
            directory.parent.mkdir(parents=True, exist_ok=True)
            if not directory.exists():
                directory.symlink_to(settings.checkpoint.resolve())
            return {"seconds": 0.0, "bytes": directory_bytes(settings.checkpoint)}
        directory.mkdir(parents=True, exist_ok=True)
        task = "pplx_bench.speed.measure:prepare_peer"
        arguments = {"peer": variant.name, "checkpoint": str(settings.checkpoint), "directory": str(directory)}
    else:
        directory.parent.mkdir(parents=True, exist_ok=True)
        task = "pplx_bench.convert.measure:convert_to"
        arguments = {"checkpoint": str(settings.checkpoint), "out": str(directory), "format": variant.name}
    found = _child(task, arguments, variant, settings, f"{variant.name}-convert.log")
    if FAILED in found:
        return found
    n_bytes = directory_bytes(directory) if variant.is_peer or not is_artifact(directory) else found["bytes"]
    return {
        "seconds": found["seconds"],
        "bytes": n_bytes,
        "convert_rss": found["rss"],
        "parity": found.get("parity", {}),
    }


def _child(task: str, arguments: Mapping[str, Any], variant: Variant, settings: Settings, log: str) -> dict[str, Any]:
    started = time.monotonic()
    try:
        (message,) = run_task(
            task,
            arguments,
            settings.threads,
            settings.directory / "logs" / log,
            _STAGE_SECONDS,
            python=variant.python,
            path=os.pathsep.join(_ROOTS) if variant.python != sys.executable else None,
        )
    except ChildFailed as error:
        return {FAILED: str(error)}
    return dict(message) | {"stage_seconds": round(time.monotonic() - started, 1)}
