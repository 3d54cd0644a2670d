"""A session that counts what it computes, and a stream's pace in parts."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pplx_edge.embedder import Embedder
from pplx_edge.types import SessionWrapper, TokenBatch


class CountingSession(SessionWrapper):
    """Counts the batches and tokens that a session has computed so far."""

    n_passes = n_tokens = longest = 0

    def compute(self, run: Callable[[TokenBatch], np.ndarray], batch: TokenBatch) -> np.ndarray:
        self.n_passes += 1
        self.n_tokens += int(batch.attention_mask.sum())
        self.longest = max(self.longest, int(batch.lengths.max(initial=0)))
        return run(batch)


def counted(embedder: Embedder) -> tuple[Embedder, CountingSession]:
    """The same model behind a counter."""
    opened: Any = embedder.session  # when the embedder is closed, what stands there says so
    session = CountingSession(opened)
    return Embedder(session, embedder.tokenizer), session


@dataclass(slots=True)
class Pace:
    """When each of `n_parts` equal parts of `n_tokens` was done, in memory that does not grow.

    `point` is told what was done by when; between two points the pace is taken to be even, as a window's vectors come
    all at once after the window was computed.
    """

    n_tokens: int
    n_parts: int = 10
    times: list[float] = field(default_factory=list)
    n_points: int = 0
    _tokens: float = 0.0
    _seconds: float = 0.0

    def point(self, tokens: int, seconds: float) -> None:
        """So many tokens were done after so many seconds; both never step back."""
        while len(self.times) < self.n_parts - 1 and tokens >= (mark := self._mark(len(self.times) + 1)):
            share = (mark - self._tokens) / (tokens - self._tokens)
            self.times.append(self._seconds + share * (seconds - self._seconds))
        self.n_points += 1
        self._tokens, self._seconds = tokens, seconds

    def rates(self) -> list[float]:
        """Tokens a second of each part; the last part ends with the last point."""
        times = [0.0, *self.times, self._seconds]
        marks = [*(self._mark(i) for i in range(len(self.times) + 1)), self._tokens]
        return [
            (marks[i + 1] - marks[i]) / (times[i + 1] - times[i])
            for i in range(len(times) - 1)
            if times[i + 1] > times[i]
        ]

    def _mark(self, part: int) -> float:
        return self.n_tokens * part / self.n_parts
