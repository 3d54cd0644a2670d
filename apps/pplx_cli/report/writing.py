"""Run the steps of a report in child processes and write what they found; a step that dies is a line in the report."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pplx_cli.availability import backend_states
from pplx_cli.report.steps import STEPS
from pplx_edge import __version__
from pplx_edge.backends.coreml_io import FORMS
from pplx_edge.files import replacing_file
from pplx_edge.registry import BACKENDS, COREML

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
    for name, arguments in plan(quick):
        label = " ".join([name, *arguments])
        say(f"report: {label}")
        why_not = _why_not(name, arguments, usable, states)
        result = {"status": "skipped", "why": why_not} if why_not else run_step(name, arguments, until)
        report["steps"].append({"step": label} | result)
    with replacing_file(path) as new:
        new.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def summary(report: dict[str, Any]) -> str:
    """Return a line for each step, with the reason if it did not succeed and the advice if there is any."""
    lines = []
    for step in report["steps"]:
        about = step.get("why") or step.get("advice") or ""
        lines.append(f"{step['status']:10} {step['step']}" + (f": {about}" if about else ""))
    return "\n".join(lines)


def plan(quick: bool) -> list[tuple[str, tuple[str, ...]]]:
    """Return the steps in order, each with its arguments."""
    steps: list[tuple[str, tuple[str, ...]]] = [("machine", ()), ("matmul", ())]
    lengths = ",".join(map(str, _QUICK_LENGTHS if quick else _LENGTHS))
    for backend in BACKENDS.values():
        formats = [backend.default_format] if quick else list(backend.formats)
        for name in formats:
            steps += [("parity", (f"{backend.name}:{name}",)), ("speed", (f"{backend.name}:{name}", lengths))]
    units = ("cpu+ane",) if quick else ("cpu+ane", "cpu", "all")
    steps += [
        ("coreml_function", (COREML.default_format, str(length), unit, form))
        for length in (_QUICK_COREML_LENGTHS if quick else _COREML_LENGTHS)
        for unit in units
        for form in FORMS
    ]
    return steps


def _why_not(name: str, arguments: Sequence[str], usable: Sequence[str], states: Any) -> str:
    backend = (
        arguments[0].partition(":")[0]
        if name in ("parity", "speed")
        else COREML.name
        if name == "coreml_function"
        else ""
    )
    return "" if not backend or backend in usable else states[backend].why


def run_step(name: str, arguments: Sequence[str], until: float) -> dict[str, Any]:
    """Run a step in a child process and return its result, or how it ended."""
    assert name in STEPS
    seconds = min(_STEP_SECONDS, until - time.monotonic())
    if seconds < 1:
        return {"status": "skipped", "why": "no time was left for it"}
    started = time.monotonic()
    try:
        child = subprocess.run(
            [*CHILD, name, *arguments], capture_output=True, text=True, errors="replace", timeout=seconds
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
