"""Hand results of threads to coroutines."""

import asyncio
from collections import deque
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")


class Bell:
    """Completes futures of the event loop from other threads, and wakes the loop once for all that are ready.

    `asyncio.wrap_future` wakes it for each, which takes the interpreter from the thread that has more to complete.
    """

    def __init__(self) -> None:
        self._ready: deque[tuple[Future, asyncio.Future]] = deque()
        self._rung = False

    def wrap(self, future: "Future[_Result]") -> "asyncio.Future[_Result]":
        """Return a future of the running loop that gets the result of another one; cancelling it cancels both."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def ring(future: Future) -> None:
            self._ready.append((future, done))
            if not self._rung:
                self._rung = True
                loop.call_soon_threadsafe(self._complete)

        done.add_done_callback(lambda done: done.cancelled() and future.cancel())
        future.add_done_callback(ring)
        return done

    def _complete(self) -> None:
        self._rung = False  # first, so that what is added from here on rings again
        while self._ready:
            future, done = self._ready.popleft()
            if done.done():
                continue
            if future.cancelled():
                done.cancel()
            elif (error := future.exception()) is not None:
                done.set_exception(error)
            else:
                done.set_result(future.result())
