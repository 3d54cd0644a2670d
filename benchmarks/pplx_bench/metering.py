"""A session that counts and times what it computes."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pplx_bench.machine import peak_rss
from pplx_edge import Embedder
from pplx_edge.types import SessionWrapper, TokenBatch


class MeteredSession(SessionWrapper):
    """A session with figures of what it has computed so far.

    `n_passes` and `n_tokens` count batches and tokens, `longest` is the longest row in tokens, and `seconds` the time
    spent computing. `first` and `last` are the times of the first start and the last end, 0 before the first batch;
    `rss_before` is the peak memory in bytes before the first batch.
    """

    n_passes = n_tokens = longest = rss_before = 0
    seconds = first = last = 0.0

    def compute(self, run: Callable[[TokenBatch], np.ndarray], batch: TokenBatch) -> np.ndarray:
        started = time.perf_counter()
        if not self.n_passes:
            self.first, self.rss_before = started, peak_rss()
        result = run(batch)
        self.last = time.perf_counter()
        self.seconds += self.last - started
        self.n_passes += 1
        self.n_tokens += int(batch.attention_mask.sum())
        self.longest = max(self.longest, int(batch.lengths.max(initial=0)))
        return result


def metered(embedder: Embedder) -> tuple[Embedder, MeteredSession]:
    """Return the same model behind a metered session, and that session."""
    opened: Any = embedder.session
    session = MeteredSession(opened)
    return Embedder(session, embedder.tokenizer, embedder.fingerprint), session
