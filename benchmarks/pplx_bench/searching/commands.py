"""`pplx-search` as people run it: a process for each command, timed from its start to its end."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pplx_bench.child import ChildFailed

_OFFLINE = {"HF_HUB_OFFLINE": "1"}
_FOUND, _NOTHING = 0, 1
_PHASES = Path(__file__).with_name("phases.py")


def update(home: Path, n_files: int, threads: int) -> float:
    """Seconds of `pplx-search update` over so many files. Raises ChildFailed unless it finds all of them unchanged."""
    seconds, done = _run([sys.executable, "-m", "pplx_search", *_arguments(home, "update", threads)])
    if done.returncode != _FOUND:
        raise ChildFailed(f"pplx-search update ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    if f"{n_files:,} unchanged, in" not in done.stderr:
        raise ChildFailed(f"pplx-search update says {done.stderr.strip()!r}, expected {n_files:,} unchanged files")
    return seconds


def search(home: Path, question: str, threads: int) -> float:
    """Seconds of `pplx-search search`."""
    seconds, done = _run([sys.executable, "-m", "pplx_search", *_arguments(home, "search", threads), question])
    _require_answer(done)
    return seconds


def search_in_phases(home: Path, question: str, threads: int) -> dict[str, float]:
    """Seconds of each phase of a search (see `phases`)."""
    program = [sys.executable, "-P", str(_PHASES), repr(time.time())]
    _, done = _run([*program, *_arguments(home, "search", threads), question])
    _require_answer(done)
    return json.loads(done.stdout.splitlines()[-1])


def _arguments(home: Path, command: str, threads: int) -> list[str]:
    return ["--home", str(home), command, "--threads", str(threads)]


def _run(command: Sequence[str]) -> tuple[float, "subprocess.CompletedProcess[str]"]:
    started = time.perf_counter()
    done = subprocess.run(command, env=os.environ | _OFFLINE, capture_output=True, text=True, check=False)
    return time.perf_counter() - started, done


def _require_answer(done: "subprocess.CompletedProcess[str]") -> None:
    """Made-up vectors may answer that nothing is relevant, which takes as long."""
    if done.returncode not in (_FOUND, _NOTHING):
        raise ChildFailed(f"pplx-search search ended with {done.returncode}: {done.stderr.strip()[-500:]}")
