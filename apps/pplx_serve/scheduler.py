"""Decide which rows of which requests the model reads next.

A request becomes a job. Every pass of the model takes rows of all waiting jobs in turn, so that a single query never
waits behind the whole of another client's request. While a pass reads rows of a large job, a second thread reads small
jobs, because a pass over long inputs takes long and cannot be interrupted. The queue is bounded in tokens.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from pplx_edge.errors import NumericalError
from pplx_edge.text.batching import collate
from pplx_edge.types import Session, TokenRow
from pplx_edge.vectors.codes import require_finite
from pplx_kit.web_errors import WebError

SMALL_TOKENS = 64  # a job of at most this many tokens may overtake a pass over a large one
_FIRST_SPEED = 1000.0  # tokens per second, until a pass was measured
_SMOOTHING = 0.2
_WAIT_SECONDS = 60


@dataclass(slots=True, eq=False)
class Job:
    """The rows of one request. The result is the means of their spans, float32 `[N, dim]`."""

    rows: list[TokenRow]
    dim: int
    done: "Future[np.ndarray]" = field(default_factory=Future)
    result: np.ndarray = field(init=False)
    n_tokens: int = field(init=False)
    n_left: int = field(init=False)  # rows without a result
    waiting: deque[int] = field(init=False)  # rows that no pass has taken, longest first
    _first_span: list[int] = field(init=False)

    def __post_init__(self) -> None:
        lengths = [len(row) for row in self.rows]
        self._first_span = [0, *accumulate(len(row.bounds) for row in self.rows)]
        self.result = np.zeros((self._first_span[-1], self.dim), np.float32)  # a row without tokens has zeros
        self.waiting = deque(sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i]))
        self.n_tokens, self.n_left = sum(lengths), len(self.waiting)

    @property
    def small(self) -> bool:
        """Return True if the job may overtake a pass over a large one."""
        return self.n_tokens <= SMALL_TOKENS

    def put(self, row: int, means: np.ndarray) -> None:
        """Keep the means of a row's spans."""
        self.result[self._first_span[row] : self._first_span[row + 1]] = means[:, : self.dim]
        self.n_left -= 1


Taken = list[tuple[Job, int]]


@dataclass(frozen=True, slots=True)
class Load:
    """The load of a scheduler: tokens that wait, tokens read so far, passes, and how full the last pass was."""

    queued_tokens: int
    read_tokens: int
    passes: int
    fill: float


class Scheduler:
    """Runs the jobs of one model in two threads, until it is closed."""

    def __init__(
        self, session: Session, pad_id: int, *, capacity: int, window: float, on_pass: Callable[[float], object]
    ):
        self._session, self._pad_id, self._policy = session, pad_id, session.policy
        self._capacity, self._window, self._on_pass = capacity, window, on_pass
        self._lock = threading.Lock()
        # A condition for each thread: waking one that has nothing to do would take the interpreter from the others.
        self._any_job, self._small_job = threading.Condition(self._lock), threading.Condition(self._lock)
        self._jobs: deque[Job] = deque()
        self._queued = self._read = self._passes = 0
        self._fill, self._speed = 0.0, _FIRST_SPEED
        self._large_pass = self._closed = False
        names = {"batches": self._read_batches, "small jobs": self._read_small_jobs}
        self._threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in names.items()]
        for thread in self._threads:
            thread.start()

    @property
    def load(self) -> Load:
        """The load right now."""
        with self._lock:
            return Load(self._queued, self._read, self._passes, self._fill)

    def require_room(self, n_tokens: int = 1) -> None:
        """Raise WebError 429 if the queue has no room. One job always fits into an empty queue."""
        with self._lock:
            self._require_room(n_tokens)

    def submit(self, job: Job) -> "Future[np.ndarray]":
        """Queue a job and return the future of its rows. Raises WebError 429 if the queue is full.

        Cancelling the future drops the rows that no pass has taken.
        """
        with self._lock:
            if self._closed:
                raise WebError(503, "the model is being unloaded; try again", code="unloading", retry_after=1)
            if not job.n_left:
                job.done.set_result(job.result)
                return job.done
            self._require_room(job.n_tokens)
            self._queued += job.n_tokens
            self._jobs.append(job)
            self._any_job.notify()
            if job.small:
                self._wake_for_small_jobs()
        job.done.add_done_callback(lambda done: self._drop(job) if done.cancelled() else None)
        return job.done

    def close(self) -> None:
        """End the threads after their current pass. Jobs that are left fail."""
        with self._lock:
            self._closed = True
            left = list(self._jobs)
            self._any_job.notify()
            self._small_job.notify()
        for thread in self._threads:
            thread.join()
        del self._session  # its memory is not needed until the scheduler itself is gone
        for job in left:
            if not job.done.done():
                job.done.set_exception(WebError(503, "the model was unloaded", code="unloading", retry_after=1))

    def _require_room(self, n_tokens: int) -> None:
        if self._queued and self._queued + n_tokens > self._capacity:
            seconds = min(_WAIT_SECONDS, round(self._queued / self._speed) + 1)
            raise WebError(429, f"{self._queued:,} tokens are waiting", code="queue_full", retry_after=seconds)

    def _drop(self, job: Job) -> None:
        with self._lock:
            if job in self._jobs:
                self._jobs.remove(job)
            self._queued -= sum(len(job.rows[row]) for row in job.waiting)
            job.waiting.clear()

    def _read_batches(self) -> None:
        while True:
            with self._lock:
                while not self._jobs and not self._closed:
                    self._any_job.wait()
                if self._closed:
                    return
                self._wait_for_more()
                if not self._jobs:
                    continue
                taken = take(self._jobs, self._policy.max_tokens, self._policy.max_attention, self._policy.padded)
                self._queued -= _tokens(taken)
                self._large_pass = any(not job.small for job, _ in taken)
                self._wake_for_small_jobs()
            self._read_rows(taken)
            self._large_pass = False

    def _wait_for_more(self) -> None:
        """Wait a moment for other jobs, unless there are enough for a whole pass."""
        deadline = time.monotonic() + self._window
        while self._queued < self._policy.max_tokens and (left := deadline - time.monotonic()) > 0:
            self._any_job.wait(left)

    def _read_small_jobs(self) -> None:
        while True:
            with self._lock:
                while not (small := self._overtaking()) and not self._closed:
                    self._small_job.wait()
                if self._closed:
                    return
                taken = take(small, SMALL_TOKENS, self._policy.max_attention, self._policy.padded)
                for job in {id(job): job for job, _ in taken}.values():
                    if not job.waiting:
                        self._jobs.remove(job)
                self._queued -= _tokens(taken)
            self._read_rows(taken)

    def _wake_for_small_jobs(self) -> None:
        if self._large_pass:
            self._small_job.notify()

    def _overtaking(self) -> deque[Job]:
        """Return the jobs that need not wait for the pass that is running."""
        return deque(job for job in self._jobs if job.small) if self._large_pass else deque()

    def _read_rows(self, taken: Taken) -> None:
        taken = [(job, row) for job, row in taken if not job.done.cancelled()]
        if not taken:
            return
        started = time.monotonic()
        try:
            means = self._session.span_means(collate([job.rows[row] for job, row in taken], self._pad_id))
            self._keep(taken, means)
        except BaseException as error:  # whatever the runtime raises belongs to those who wait for it
            for job, _ in taken:
                self._drop(job)
                _fail(job, error)
        seconds = time.monotonic() - started
        n_tokens = _tokens(taken)
        with self._lock:
            self._read, self._passes = self._read + n_tokens, self._passes + 1
            self._fill = min(1.0, n_tokens / self._policy.max_tokens)
            self._speed += _SMOOTHING * (n_tokens / max(seconds, 1e-6) - self._speed)
        self._on_pass(self._fill)

    def _keep(self, taken: Taken, means: np.ndarray) -> None:
        """Give the means of a pass to their jobs, and finish the jobs that are complete. NaN fails its job alone."""
        finite = bool(np.isfinite(means).all())
        stops = list(accumulate(len(job.rows[row].bounds) for job, row in taken))
        finished = []
        with self._lock:
            for (job, row), start, stop in zip(taken, [0, *stops], stops, strict=False):
                job.put(row, means[start:stop])
                if not job.n_left:
                    finished.append(job)
        if not finite:
            for (job, row), start, stop in zip(taken, [0, *stops], stops, strict=False):
                try:
                    require_finite(means[start:stop], [f"input {row}"] * (stop - start))
                except NumericalError as error:
                    self._drop(job)
                    _fail(job, error)
        for job in finished:
            if _unanswered(job):
                job.done.set_result(job.result)


def take(jobs: deque[Job], max_tokens: int, max_attention: int, padded: bool) -> Taken:
    """Return the rows of the next pass, and remove them from their jobs, and jobs without further rows from the queue.

    The longest row of the first job is in the pass whatever its length, and then the job moves to the end of the queue.
    What is left of the pass is shared equally, and what some jobs do not need, the others get. A session that computes
    padding gets rows of like length.
    """
    first = jobs[0]
    taken: Taken = [(first, first.waiting.popleft())]
    longest = len(first.rows[taken[0][1]])
    room, attention = max_tokens - longest, max_attention - longest * longest

    def fits(length: int, share: int) -> bool:
        cost = longest if padded else length
        alike = longest // 2 <= length <= longest or not padded
        return alike and cost <= min(room, share) and cost * cost <= attention

    for share in (room // len(jobs), room):
        for job in jobs:
            given = 0
            while job.waiting:
                ends = [job.waiting[0], job.waiting[-1]]
                row = next((row for row in ends if fits(len(job.rows[row]), share - given)), None)
                if row is None:
                    break
                job.waiting.remove(row)
                cost = longest if padded else len(job.rows[row])
                room, attention, given = room - cost, attention - cost * cost, given + cost
                taken.append((job, row))
    for job in list(jobs):
        if not job.waiting:
            jobs.remove(job)
    if jobs and jobs[0] is first:
        jobs.rotate(-1)
    return taken


def _tokens(taken: Taken) -> int:
    return sum(len(job.rows[row]) for job, row in taken)


def _fail(job: Job, error: BaseException) -> None:
    if _unanswered(job):
        job.done.set_exception(error)


def _unanswered(job: Job) -> bool:
    """Return True if a job is neither cancelled nor failed. After that, it cannot be cancelled any more."""
    return not job.done.done() and job.done.set_running_or_notify_cancel()
