"""Read files ahead in a background thread, so that the model never waits for parsers."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from pplx_edge.errors import EdgeError
from pplx_search.ids import FileId
from pplx_search.ingest.reading import Reader, ReadFailed, ReadFile
from pplx_search.ingest.walk import FoundFile

_AHEAD = 32
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Task:
    """A file to read: its id in the store, and what the walk found."""

    file_id: FileId
    found: FoundFile


Outcome = ReadFile | ReadFailed
_Message = tuple[Task, Outcome] | EdgeError | None


class ReadAhead:
    """Iterates over `(task, outcome)` in order, reading ahead. Leaving the context stops the thread.

    `meanwhile` is called before each outcome, and repeatedly while waiting for one.
    """

    def __init__(self, reader: Reader, tasks: Sequence[Task], meanwhile: Callable[[], None] = lambda: None):
        self._reader, self._tasks, self._meanwhile = reader, tasks, meanwhile
        self._queue: queue.Queue[_Message] = queue.Queue(_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pplx-search-reading", daemon=True)

    def __enter__(self) -> "ReadAhead":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join()
        while not self._queue.empty():
            message = self._queue.get()
            if isinstance(message, tuple) and isinstance(message[1], ReadFile):
                message[1].close()

    def __iter__(self) -> Iterator[tuple[Task, Outcome]]:
        """Yield each task with its outcome. Raises errors that do not concern a single file, such as a full disk."""
        while (message := self._next()) is not None:
            if isinstance(message, EdgeError):
                raise message
            yield message

    def _next(self) -> _Message:
        while True:
            self._meanwhile()
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=_POLL_SECONDS)

    def _run(self) -> None:
        try:
            wanted = ((task.found.path, task.found.kind) for task in self._tasks)
            for task, (_, outcome) in zip(self._tasks, self._reader.read_all(wanted), strict=True):
                if not self._put((task, outcome)):
                    if isinstance(outcome, ReadFile):
                        outcome.close()
                    return
            self._put(None)
        except EdgeError as error:
            self._put(error)
        except Exception as error:
            failed = EdgeError(f"reading files failed: {error!r}")
            failed.__cause__ = error
            self._put(failed)

    def _put(self, message: _Message) -> bool:
        """Put a message into the queue. Returns False if it was closed."""
        while not self._closed.is_set():
            try:
                self._queue.put(message, timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False
