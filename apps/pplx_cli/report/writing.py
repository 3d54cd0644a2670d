"""Run the steps of a report in child processes and write what they found; a step that dies is a line in the report."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pplx_cli.availability import backend_states
from pplx_cli.report.steps import STEPS
from pplx_edge import __version__
from pplx_edge.backends.coreml_io import FORMS
from pplx_edge.files import replacing_file
from pplx_edge.registry import BACKENDS, COREML, Backend
from pplx_edge.weights import hub

VERSION = 1
FULL_SECONDS, QUICK_SECONDS = 300.0, 60.0
_STEP_SECONDS = 120.0
_LENGTHS, _QUICK_LENGTHS = (32, 128, 512, 2048), (128,)
_COREML_LENGTHS, _QUICK_COREML_LENGTHS = (32, 64, 128, 256, 512), (128,)
CHILD = (sys.executable, "-m", "pplx_cli.report.steps")


def write_report(path: Path, *, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the report as JSON and return it. Steps that find no time left are skipped with that reason."""
    until = time.monotonic() + (QUICK_SECONDS if quick else FULL_SECONDS)
    states = backend_states()
    usable = [name for name, state in states.items() if state.usable]
    report: dict[str, Any] = {
        "report": VERSION,
        "pplx_edge": __version__,
        "quick": quick,
        "backends": {name: asdict(state) for name, state in states.items()},
        "steps": [],
    }
    with tempfile.TemporaryDirectory(prefix="pplx-edge-report-") as folder:  # so that nothing is left but the proofs
        for name, arguments in plan(quick):
            label = " ".join([name, *arguments])
            say(f"report: {label}")
            why_not = _why_not(name, arguments, usable, states)
            cache = "" if name == "proof" else folder
            result = {"status": "skipped", "why": why_not} if why_not else run_step(name, arguments, until, cache)
            report["steps"].append({"step": label} | result)
    with replacing_file(path) as new:
        new.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def summary(report: dict[str, Any]) -> str:
    """Return a line for each step, with the reason if it did not succeed and the advice if there is any."""
    lines = []
    for step in report["steps"]:
        about = "; ".join(
            filter(None, (step.get("why"), step.get("advice"), step.get("note"), *step.get("warnings", ())))
        )
        lines.append(f"{step['status']:10} {step['step']}" + (f": {about}" if about else ""))
    return "\n".join(lines)


def plan(quick: bool) -> list[tuple[str, tuple[str, ...]]]:
    """Return the steps in order, each with its arguments; what is most worth knowing comes first."""
    lengths = ",".join(map(str, _QUICK_LENGTHS if quick else _LENGTHS))
    defaults = [(backend, backend.default_format) for backend in BACKENDS.values()]
    others = [(backend, name) for backend in BACKENDS.values() for name in backend.formats]
    return [
        ("machine", ()),
        ("matmul", ()),
        *(("proof", (backend.name,)) for backend in BACKENDS.values() if backend.proof),
        *_format_steps(defaults, lengths),
        *_coreml_steps(quick),
        *([] if quick else _format_steps([pair for pair in others if pair not in defaults], lengths)),
    ]


def _format_steps(formats: Iterable[tuple[Backend, str]], lengths: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for backend, artifact_format in formats:
        name = f"{backend.name}:{artifact_format}"
        yield from (("convert", (name,)), ("parity", (name,)), ("speed", (name, lengths)))


def _coreml_steps(quick: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    for units in ("cpu+ane",) if quick else ("cpu+ane", "cpu", "all"):
        for length in _QUICK_COREML_LENGTHS if quick else _COREML_LENGTHS:
            for form in FORMS:
                yield "coreml_function", (COREML.default_format, str(length), units, form)
        yield "coreml_plan", (COREML.default_format, units)


def _why_not(name: str, arguments: Sequence[str], usable: Sequence[str], states: Any) -> str:
    """Return why the backend of a step cannot be used, or "" if it can, or if the step needs none."""
    if name in ("coreml_function", "coreml_plan"):
        backend = COREML.name
    elif name in ("proof", "convert", "parity", "speed"):
        backend = arguments[0].partition(":")[0]
    else:
        return ""
    return "" if backend in usable else states[backend].why


def run_step(name: str, arguments: Sequence[str], until: float, cache: str = "") -> dict[str, Any]:
    """Run a step in a child process, with a cache of its own if given, and return its result, or how it ended."""
    assert name in STEPS
    seconds = min(_STEP_SECONDS, until - time.monotonic())
    if seconds < 1:
        return {"status": "skipped", "why": "no time was left for it"}
    started = time.monotonic()
    try:
        child = subprocess.run(
            [*CHILD, name, *arguments],
            env=os.environ | ({hub.CACHE_VARIABLE: cache} if cache else {}),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return {"status": "timeout", "why": f"no result after {seconds:.0f} s"}
    took = {"seconds": round(time.monotonic() - started, 1)}
    if child.returncode < 0:
        return {"status": "crashed", "why": f"ended by signal {-child.returncode}"} | took
    try:
        return dict(json.loads(child.stdout.strip().splitlines()[-1])) | took
    except (IndexError, ValueError):
        last = child.stderr.strip().splitlines()[-1:] or [f"exit status {child.returncode}"]
        return {"status": "failed", "why": last[0][:500]} | took
