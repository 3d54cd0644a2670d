"""`pplx-search` as people run it: a process for each command, timed from start to end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from pplx_bench.child import ChildFailed

_FOUND, _NOTHING = 0, 1
_PHASES = Path(__file__).with_name("phases.py")
_COMMAND = ("-m", "pplx_search")


def update(home: Path, n_files: int, threads: int) -> float:
    """Return the seconds of `pplx-search update`. Raises ChildFailed unless all files are unchanged."""
    seconds, done = _run(_COMMAND, home, "update", threads)
    if done.returncode != _FOUND or f"{n_files:,} unchanged, in" not in done.stderr:
        said = done.stderr.strip()[-500:]
        raise ChildFailed(f"pplx-search update ended with {done.returncode}, not {n_files:,} unchanged files: {said}")
    return seconds


def search(home: Path, question: str, threads: int) -> float:
    """Return the seconds of `pplx-search search`. Raises ChildFailed if it fails."""
    return _search(_COMMAND, home, question, threads)[0]


def search_in_phases(home: Path, question: str, threads: int) -> dict[str, float]:
    """Return the seconds of each phase of `pplx-search search` (see `phases`)."""
    program = ("-P", str(_PHASES), repr(time.time()))
    return json.loads(_search(program, home, question, threads)[1].stdout.splitlines()[-1])


def _search(
    program: tuple[str, ...], home: Path, question: str, threads: int
) -> tuple[float, "subprocess.CompletedProcess[str]"]:
    seconds, done = _run(program, home, "search", threads, question)
    if done.returncode not in (_FOUND, _NOTHING):  # synthetic vectors may find nothing relevant, in the same time
        raise ChildFailed(f"pplx-search search ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    return seconds, done


def _run(
    program: tuple[str, ...], home: Path, command: str, threads: int, *arguments: str
) -> tuple[float, "subprocess.CompletedProcess[str]"]:
    line = [sys.executable, *program, "--home", str(home), command, "--threads", str(threads), *arguments]
    started = time.perf_counter()
    done = subprocess.run(line, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    return time.perf_counter() - started, done
