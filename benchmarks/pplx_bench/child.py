"""A task in a process of its own: clean peak memory, clean thread settings, and a crash that costs only itself.

The child reads one JSON request from stdin and writes one JSON message a line to stdout as it goes; whatever libraries
print lands in a log file. Run as `python -m pplx_bench.child`.
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
from importlib import import_module
from pathlib import Path
from typing import Any

Message = dict[str, Any]
Send = Callable[[Message], None]

# What a child can be asked for: module and function, called with the request's arguments and `send`.
TASKS = {
    "measure": ("pplx_bench.measuring", "measure_peer"),
    "prepare": ("pplx_bench.measuring", "prepare_peer"),
    "reference": ("pplx_bench.measuring", "make_reference"),
    "ceilings": ("pplx_bench.ceilings", "measure_ceilings"),
    "profile": ("pplx_bench.profiling", "profile_rows"),
    "convert": ("pplx_bench.memory", "convert_checkpoint"),
    "encode": ("pplx_bench.memory", "encode_once"),
    "convert_to": ("pplx_bench.convert", "convert_to"),
    "stream": ("pplx_bench.stream.size", "stream_once"),
    "index": ("pplx_bench.searching.ingesting", "index_folder"),
    "whole": ("pplx_bench.stream.whole", "late_chunk_once"),
}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class ChildFailed(Exception):
    """A child ended without finishing its task; the message says how, and where its log is."""


def run_task(
    task: str, arguments: Mapping[str, Any], threads: int, log: Path, timeout: float | None = None
) -> Iterator[Message]:
    """The messages of a task, as they come. Raises ChildFailed when it raises, dies or takes longer than `timeout`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pplx_bench.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            env=_environment(threads),
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
    assert process.stdin is not None  # both were asked for as pipes
    assert process.stdout is not None
    with suppress(BrokenPipeError), process.stdin as pipe:  # a child that dies at once is told by its status
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
    """Runs the task that stdin asks for."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not end up between the messages

    def send(message: Message) -> None:
        output.write(json.dumps(message) + "\n")
        output.flush()

    request = json.load(sys.stdin)
    module, function = TASKS[request["task"]]
    try:
        getattr(import_module(module), function)(request["arguments"], send)
    except Exception as error:
        traceback.print_exc()
        send({"kind": "failed", "error": f"{type(error).__name__}: {error}".splitlines()[0]})
        return 1
    send({"kind": "finished"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
