"""Run a measurement in a child process, so that its peak memory and threads are its own and a crash ends only it.

The child reads a JSON request from stdin and writes JSON messages to stdout, one per line. Everything that libraries
print goes to a log file. Run as `python -m pplx_bench.child`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pplx_edge.registry import entry

Message = dict[str, Any]
Send = Callable[[Message], None]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class ChildFailed(Exception):
    """A child ended without finishing; the message says how, and where its log is."""


def run_task(
    task: str,
    arguments: Mapping[str, Any],
    threads: int,
    log: Path,
    timeout: float | None = None,
    *,
    python: str | None = None,
    path: str | None = None,
) -> Iterator[Message]:
    """Yield the messages of a task as they arrive.

    The task is an entry `"package.module:function"`, called as `function(arguments, send)`. `threads` limits the
    threads of every numeric library, and `timeout` is in seconds. `python` is the interpreter, which may belong to
    another environment (None: this one), and `path` its PYTHONPATH (None: as it is). Raises ChildFailed if the task
    raises, dies or takes too long.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            [python or sys.executable, "-m", "pplx_bench.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env=_environment(threads) | ({} if path is None else {"PYTHONPATH": path}),
            text=True,
            encoding="utf-8",
        )
    timer = threading.Timer(timeout, process.kill) if timeout is not None else None
    try:
        if timer is not None:
            timer.start()
        yield from _messages(process, {"task": task, "arguments": dict(arguments)}, log)
    finally:
        if timer is not None:
            timer.cancel()
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _messages(process: subprocess.Popen[str], request: Mapping[str, Any], log: Path) -> Iterator[Message]:
    assert process.stdin is not None  # both are pipes
    assert process.stdout is not None
    with suppress(BrokenPipeError), process.stdin as pipe:  # the exit status reports a child that dies at once
        pipe.write(json.dumps(request))
    finished = False
    for line in process.stdout:
        message = json.loads(line)
        if message.get("kind") == "failed":
            raise ChildFailed(message["error"])
        if message.get("kind") == "finished":
            finished = True
            continue
        yield message
    code = process.wait()
    if not finished:
        raise ChildFailed(f"{_ending(code)}; its output is in {log}")


def _ending(code: int) -> str:
    if code >= 0:
        return f"the process ended with status {code}"
    killed = " (out of time or memory)" if -code == signal.SIGKILL else ""
    return f"the process was ended by {signal.Signals(-code).name}{killed}"


def _environment(threads: int) -> dict[str, str]:
    variables = dict.fromkeys(_THREAD_VARIABLES, str(threads))
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    return os.environ | variables | quiet


def main() -> int:
    """Run the task that stdin names, and return the exit status."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # keeps prints of libraries out of the messages

    def send(message: Message) -> None:
        output.write(json.dumps(message) + "\n")
        output.flush()

    request = json.load(sys.stdin)
    try:
        entry(request["task"])(request["arguments"], send)
    except Exception as error:
        traceback.print_exc()
        send({"kind": "failed", "error": f"{type(error).__name__}: {error}".splitlines()[0]})
        return 1
    send({"kind": "finished"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
