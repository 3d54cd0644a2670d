"""The scheduler, over fake sessions: which rows share a pass, in which order, and what happens when one fails."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from fakes import FakeSession, fake_embedder
from hypothesis import given
from hypothesis import strategies as st

from pplx_edge.embedder import Embedder
from pplx_edge.errors import NumericalError
from pplx_edge.types import BatchPolicy, TokenBatch, TokenRow
from pplx_kit.web_errors import WebError
from pplx_serve.scheduler import SMALL_TOKENS, Job, Scheduler, take

DIM = 8
SECONDS = 30.0


def row(length: int) -> TokenRow:
    return TokenRow(np.arange(length, dtype=np.int64) % 50, ((0, length),))


def job(lengths: Sequence[int]) -> Job:
    return Job([row(length) for length in lengths], DIM)


class GatedSession(FakeSession):
    """A fake session whose passes over large rows wait until they are let through."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.gate, self.entered = threading.Event(), threading.Event()

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        if batch.attention_mask.sum() > SMALL_TOKENS:
            self.entered.set()
            assert self.gate.wait(SECONDS)
        return super().span_means(batch)


@contextmanager
def scheduling(model: Embedder, capacity: int = 10_000, window: float = 0.0) -> Iterator[Scheduler]:
    scheduler = Scheduler(
        model.session, model.tokenizer.sep_id, capacity=capacity, window=window, on_pass=lambda fill: None
    )
    try:
        yield scheduler
    finally:
        scheduler.close()


def job_of(model: Embedder, texts: Sequence[str]) -> Job:
    return Job(model.tokenizer.text_rows(texts), model.dim)


@given(
    jobs=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=12), min_size=1, max_size=8),
    max_tokens=st.integers(1, 128),
    padded=st.booleans(),
)
def test_every_row_is_read_once_within_the_budget(jobs: list[list[int]], max_tokens: int, padded: bool) -> None:
    waiting = deque(job(lengths) for lengths in jobs)
    everything = [(each, index) for each in waiting for index in range(len(each.rows))]
    read = []
    while waiting:
        first = waiting[0]
        taken = take(waiting, max_tokens, 1 << 20, padded)
        assert first in [each for each, _ in taken]
        lengths = [len(each.rows[index]) for each, index in taken]
        cost = max(lengths) * len(lengths) if padded else sum(lengths)
        assert cost <= max_tokens or len(taken) == 1
        assert not padded or min(lengths) >= max(lengths) // 2
        read += taken
    assert sorted(map(_key, read)) == sorted(map(_key, everything))


def _key(taken: tuple[Job, int]) -> tuple[int, int]:
    return id(taken[0]), taken[1]


@given(bulk=st.lists(st.integers(1, 60), min_size=20, max_size=60), queries=st.integers(1, 6))
def test_a_query_is_in_the_next_pass_whatever_else_waits(bulk: list[int], queries: int) -> None:
    small = [job([5]) for _ in range(queries)]
    waiting = deque([job(bulk), job(bulk), *small])
    taken = {id(each) for each, _ in take(waiting, 128, 1 << 20, False)}
    assert {id(each) for each in small} <= taken


def test_results_are_those_of_the_embedder() -> None:
    model = fake_embedder(FakeSession(policy=BatchPolicy(max_tokens=16)))
    texts = ["a", "", "some longer text than others", "b c", "", "another one"]
    with scheduling(model) as scheduler:
        found = scheduler.submit(job_of(model, texts)).result(SECONDS)
    np.testing.assert_array_equal(found, model.encode(texts, "float32"))


def test_jobs_share_passes() -> None:
    session = GatedSession(policy=BatchPolicy(max_tokens=256))
    model = fake_embedder(session)
    with scheduling(model) as scheduler:
        first = scheduler.submit(job_of(model, ["word " * 20] * 2))
        assert session.entered.wait(SECONDS)
        others = [scheduler.submit(job_of(model, ["word " * 13])) for _ in range(4)]
        session.gate.set()
        for future in (first, *others):
            future.result(SECONDS)
    assert len(session.batches) <= 3


def test_a_small_job_overtakes_a_pass_over_a_large_one() -> None:
    session = GatedSession()
    model = fake_embedder(session)
    with scheduling(model) as scheduler:
        large = scheduler.submit(job_of(model, ["word " * 100]))
        assert session.entered.wait(SECONDS)
        small = scheduler.submit(job_of(model, ["a question"]))
        np.testing.assert_array_equal(small.result(SECONDS), model.encode(["a question"], "float32"))
        assert not large.done()
        session.gate.set()
        np.testing.assert_array_equal(large.result(SECONDS), model.encode(["word " * 100], "float32"))


def test_a_full_queue_is_refused_and_cancelling_makes_room() -> None:
    session = GatedSession(policy=BatchPolicy(max_tokens=1))
    model = fake_embedder(session)
    with scheduling(model, capacity=300) as scheduler:
        running = scheduler.submit(job_of(model, ["word " * 500]))  # one job fits into an empty queue, however large
        assert session.entered.wait(SECONDS)
        waiting = scheduler.submit(job_of(model, ["word " * 100]))
        before = scheduler.load.queued_tokens
        with pytest.raises(WebError) as refused:
            scheduler.submit(job_of(model, ["word " * 300]))
        assert refused.value.status == 429
        assert 1 <= (refused.value.retry_after or 0) <= 60
        assert waiting.cancel()
        assert scheduler.load.queued_tokens == 0 < before
        session.gate.set()
        running.result(SECONDS)


def test_a_broken_vector_fails_its_job_alone() -> None:
    session = FakeSession()
    model = fake_embedder(session)
    session.nan_id = int(model.tokenizer.text_rows(["poison"])[0].ids[0])
    with scheduling(model, window=0.2) as scheduler:
        bad = scheduler.submit(job_of(model, ["x", "poison"]))
        good = scheduler.submit(job_of(model, ["yy"]))
        with pytest.raises(NumericalError, match="input 1"):
            bad.result(SECONDS)
        np.testing.assert_array_equal(good.result(SECONDS), model.encode(["yy"], "float32"))


def test_an_exception_of_the_runtime_goes_to_those_who_wait() -> None:
    class Failing(FakeSession):
        def span_means(self, batch: TokenBatch) -> np.ndarray:
            if len(batch.lengths) > 1:
                raise MemoryError
            return super().span_means(batch)

    model = fake_embedder(Failing())
    with scheduling(model) as scheduler:
        with pytest.raises(MemoryError):
            scheduler.submit(job_of(model, ["a word", "two"])).result(SECONDS)
        assert scheduler.load.queued_tokens == 0
        np.testing.assert_array_equal(
            scheduler.submit(job_of(model, ["x"])).result(SECONDS), model.encode(["x"], "float32")
        )


def test_closing_fails_what_waits() -> None:
    session = GatedSession(policy=BatchPolicy(max_tokens=1))
    model = fake_embedder(session)
    scheduler = Scheduler(session, 0, capacity=10_000, window=0.0, on_pass=lambda fill: None)
    running = scheduler.submit(job_of(model, ["word " * 100]))
    assert session.entered.wait(SECONDS)
    waiting = scheduler.submit(job_of(model, ["word " * 100]))
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    session.gate.set()
    closing.join(SECONDS)
    running.result(SECONDS)
    with pytest.raises(WebError, match="unloaded"):
        waiting.result(SECONDS)
    with pytest.raises(WebError, match="being unloaded"):
        scheduler.submit(job_of(model, ["x"]))
