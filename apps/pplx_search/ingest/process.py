"""A child process that parses, and the watch over it: its time, its memory, and how much it says."""

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
    """When a child is ended: after so many seconds, with so much resident memory, after so many bytes of answer."""

    seconds: float
    memory_bytes: int
    answer_bytes: int


class Child:
    """A running child. It may be sent several files at a time, and answers them in their order.

    After a ParseFailed of `answer`, or any other exception in it, the child is dead.
    """

    def __init__(self, parsers: tuple[str, ...]):
        self.n_asked = 0
        self.alive = True
        self._buffer, self._taken = bytearray(), 0  # what it said, and how much of that was taken
        command = [sys.executable, "-P", "-m", "pplx_search.ingest.child", *parsers]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,  # so that all it might start can be ended with it, and Ctrl-C is ours alone
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
        """Asks for a file. What all that was asked and not answered takes must fit into a pipe.

        Raises EdgeError when the child did not start.
        """
        if not self.n_asked:
            self._wait_until_ready()
        self.n_asked += 1
        with contextlib.suppress(BrokenPipeError):  # it is dead then, which reading finds out
            self._stdin.write(wire.pack(request))

    def answer(self, watch: Watch) -> Generator[tuple[bytes, dict[str, Any]], None, None]:
        """The messages about the next file, packed and unpacked, the last of which is `done` or `failed`.

        Raises ParseFailed when the child had to be ended, or ended by itself.
        """
        try:
            for packed, message in self._messages(watch):
                yield packed, message
                if message["type"] in ("done", "failed"):
                    return
        except wire.BrokenWire as error:
            self.kill()
            raise ParseFailed("crashed", f"the parser's process answered nonsense: {error}") from error
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> None:
        """The time that it takes to start is not the file's, and may be long where others use the processor."""
        watch = Watch(seconds=_START_SECONDS, memory_bytes=_START_BYTES, answer_bytes=_READ_BYTES)
        try:
            next(self._messages(watch))
        except (ParseFailed, wire.BrokenWire) as error:
            self.kill()
            raise EdgeError(f"a process to read files in could not be started: {error}") from error
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
                    raise ParseFailed("too-large", f"the parser gave more than {watch.answer_bytes >> 20:,} MB")
            yield packed, wire.checked_answer(wire.unpack(packed[wire.HEADER_BYTES :]))

    def _take(self) -> bytes | None:
        """The next whole message that has come, None when there is none yet."""
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
        """Waits until the child has said more; returns how many bytes. Raises ParseFailed when it must be ended."""
        look_at = time.monotonic() + _WATCH_SECONDS
        while (now := time.monotonic()) < deadline:
            if now >= look_at:
                _require_memory(self._process.pid, watch.memory_bytes)
                look_at = now + _WATCH_SECONDS
            if not self._selector.select(min(deadline, look_at) - now):
                continue
            block = self._stdout.read(_READ_BYTES)
            if block == b"":
                raise ParseFailed("crashed", f"the parser's process ended: {self._how_it_ended()}")
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
        """Ends the child and all that it started, whatever they are doing, and waits until it is gone."""
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
    """Memory that a process has in use, 0 when it cannot be told."""
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
        raise ParseFailed("memory", f"reading took {n_bytes / 1e6:,.0f} MB of memory, limit {limit / 1e6:,.0f} MB")
