"""A parser process with limits on its time, memory and output."""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from pplx_edge.errors import EdgeError
from pplx_search.ingest import wire
from pplx_search.ingest.failures import ParseFailed

_READ_BYTES = 1 << 18
_START_SECONDS, _START_BYTES = 60.0, 1 << 30
_WATCH_SECONDS = 0.1 if sys.platform == "linux" else 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """The limits at which a child process is killed: time, resident memory and size of the answer."""

    seconds: float
    memory_bytes: int
    answer_bytes: int


class Child:
    """A running child process. It accepts several requests at a time and answers them in order.

    After any exception in `answer`, including ParseFailed, the child is dead.
    """

    def __init__(self, parsers: tuple[str, ...]):
        self.n_asked = 0
        self.alive = True
        self._buffer, self._taken = bytearray(), 0  # received bytes, and how many of them were consumed
        command = [sys.executable, "-P", "-m", "pplx_search.ingest.child", *parsers]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,  # to kill it with all its processes, and keep Ctrl-C from it
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        os.set_blocking(self._stdout.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)

    def is_running(self) -> bool:
        return self.alive and self._process.poll() is None

    def send(self, request: dict[str, Any]) -> None:
        """Request a file. Unanswered requests must fit in the pipe buffer, otherwise both sides block.

        Raises EdgeError if the child did not start.
        """
        if not self.n_asked:
            self._wait_until_ready()
        self.n_asked += 1
        with contextlib.suppress(BrokenPipeError):  # the child is dead, which `answer` reports
            self._stdin.write(wire.pack(request))

    def answer(self, watch: Watch) -> Generator[tuple[bytes, dict[str, Any]], None, None]:
        """Yield the messages about the next file, packed and unpacked; the last one is `done` or `failed`.

        Raises ParseFailed if the child crashed or exceeded a limit.
        """
        try:
            for packed, message in self._messages(watch):
                yield packed, message
                if message["type"] in ("done", "failed"):
                    return
        except wire.BrokenWire as error:
            self.kill()
            raise ParseFailed("crashed", f"the parser process sent an invalid message: {error}") from error
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> None:
        """Wait until the child is ready. This does not count as time of a file, and can be slow on a busy machine."""
        watch = Watch(seconds=_START_SECONDS, memory_bytes=_START_BYTES, answer_bytes=_READ_BYTES)
        try:
            next(self._messages(watch))
        except (ParseFailed, wire.BrokenWire) as error:
            self.kill()
            raise EdgeError(f"the parser process could not be started: {error}") from error
        except BaseException:
            self.kill()
            raise

    def _messages(self, watch: Watch) -> Iterator[tuple[bytes, dict[str, Any]]]:
        deadline = time.monotonic() + watch.seconds
        n_bytes = 0
        while True:
            while (packed := self._take()) is None:
                n_bytes += self._fill(watch, deadline)
                if n_bytes > watch.answer_bytes:
                    raise ParseFailed("too-large", f"the parser returned more than {watch.answer_bytes >> 20:,} MB")
            yield packed, wire.checked_answer(wire.unpack(packed[wire.HEADER_BYTES :]))

    def _take(self) -> bytes | None:
        """Return the next complete message, or None if it has not arrived yet."""
        start, body = self._taken, self._taken + wire.HEADER_BYTES
        if len(self._buffer) >= body:
            stop = body + wire.length_of(bytes(self._buffer[start:body]))
            if len(self._buffer) >= stop:
                self._taken = stop
                return bytes(self._buffer[start:stop])
        del self._buffer[: self._taken]
        self._taken = 0
        return None

    def _fill(self, watch: Watch, deadline: float) -> int:
        """Wait for more output and return its length. Raises ParseFailed if the child exceeds a limit."""
        look_at = time.monotonic() + _WATCH_SECONDS
        while (now := time.monotonic()) < deadline:
            if now >= look_at:
                _require_memory(self._process.pid, watch.memory_bytes)
                look_at = now + _WATCH_SECONDS
            if not self._selector.select(min(deadline, look_at) - now):
                continue
            block = self._stdout.read(_READ_BYTES)
            if block == b"":
                raise ParseFailed("crashed", f"the parser process ended: {self._how_it_ended()}")
            if block:
                self._buffer += block
                return len(block)
        raise ParseFailed("timeout", f"reading took longer than {watch.seconds:.0f} s")

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        if status < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-status).name
        return f"status {status}"

    def kill(self) -> None:
        """Kill the child with all processes that it started, and wait for it."""
        if not self.alive:
            return
        self.alive = False
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._selector.close()
        self._stdin.close()
        self._stdout.close()


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes, or 0 if it is unknown."""
    return _resident_on_linux(pid) if sys.platform == "linux" else _resident_by_ps(pid)


def _resident_on_linux(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def _resident_by_ps(pid: int) -> int:
    answer = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return int(answer.stdout.strip() or 0) * 1024


def _require_memory(pid: int, limit: int, resident: Callable[[int], int] = resident_bytes) -> None:
    if (n_bytes := resident(pid)) > limit:
        raise ParseFailed(
            "memory", f"reading took {n_bytes / 1e6:,.0f} MB of memory, more than the limit of {limit / 1e6:,.0f} MB"
        )
