"""Windows against the sequence that they are cut from: each token of a chunk once, with the margins around it."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from fakes import fake_spec
from hypothesis import example, given
from hypothesis import strategies as st

from pplx_edge.errors import InputError
from pplx_edge.types import StreamOptions, TextChunk
from pplx_edge.vectors.late_chunking import (
    ChunkTokens,
    Part,
    RunningMean,
    Window,
    WindowSizes,
    plan_windows,
    window_within,
)

SEP = 7
lengths = st.lists(st.integers(0, 70), max_size=40)
sizes = st.builds(
    lambda window, margin, heading_tokens: WindowSizes(window, margin, heading_tokens),
    st.integers(24, 60),
    st.integers(0, 6),
    st.integers(0, 6),
)


def chunks_of(lengths: list[int]) -> list[ChunkTokens]:
    """Chunks whose ids are their places in the document, from 1000 on; headings are ids from 100 on."""
    first, made = 1000, []
    for i, n in enumerate(lengths):
        chunk = TextChunk(first, first + n, "", "", 1, None, (), "")
        made.append(ChunkTokens(chunk, np.arange(first, first + n), np.arange(100, 100 + i % 5)))
        first += n
    return made


def joined(chunks: list[ChunkTokens], sep_id: int | None) -> list[int]:
    """The whole sequence, the slow way."""
    sequence: list[int] = []
    for i, chunk in enumerate(chunks):
        sequence += [sep_id] if i and sep_id is not None else []
        sequence += chunk.ids.tolist()
    return sequence


def taken(window: Window, part: Part) -> list[int]:
    return window.row.ids[part.start : part.stop].tolist()


@given(lengths, sizes, st.sampled_from([None, SEP]))
@example(lengths=[42, 0], sizes=WindowSizes(24, 0, 6), sep_id=SEP)
def test_every_token_of_every_chunk_is_owned_by_one_window_in_order(
    lengths: list[int], sizes: WindowSizes, sep_id: int | None
):
    chunks = chunks_of(lengths)
    found: list[list[int]] = [[] for _ in chunks]
    closed, last = [], -1
    for window in plan_windows(chunks, sizes, sep_id):
        assert len(window.row) <= sizes.window
        assert window.row.bounds == tuple((part.start, part.stop) for part in window.parts)
        for part in window.parts:
            assert part.index in (last, last + 1)
            last = part.index
            assert part.index not in closed
            found[part.index] += taken(window, part)
            closed += [part.index] if part.closes else []
            assert part.n_tokens == lengths[part.index]
    assert closed == list(range(len(chunks)))
    assert found == [chunk.ids.tolist() for chunk in chunks]


@given(lengths, sizes, st.sampled_from([None, SEP]))
def test_every_core_has_its_margins_of_the_sequence_around_it(
    lengths: list[int], sizes: WindowSizes, sep_id: int | None
):
    chunks = chunks_of(lengths)
    sequence = joined(chunks, sep_id)
    starts = np.cumsum([0, *(n + (sep_id is not None) for n in lengths)])
    reached: dict[int, int] = {}
    for window in plan_windows(chunks, sizes, sep_id):
        first, final = window.parts[0], window.parts[-1]
        owned_from = int(starts[first.index]) + reached.get(first.index, 0)
        reached[final.index] = reached.get(final.index, 0) + final.stop - final.start
        stop = int(starts[final.index]) + reached[final.index]
        left, right = first.start - min(sizes.margin, owned_from), final.stop + min(sizes.margin, len(sequence) - stop)
        inner = window.row.ids[first.start : final.stop].tolist()
        assert inner == sequence[owned_from:stop]
        before, after = sequence[max(0, owned_from - sizes.margin) : owned_from], sequence[stop : stop + sizes.margin]
        if before and before[0] == sep_id and owned_from > sizes.margin:
            before, left = before[1:], left + 1
        if after and after[-1] == sep_id:
            after, right = after[:-1], right - 1
        assert window.row.ids[left : first.start].tolist() == before
        assert window.row.ids[final.stop :].tolist() == after
        assert left <= sizes.heading_tokens


@given(st.lists(st.integers(0, 9), min_size=1, max_size=10), st.sampled_from([None, SEP]))
def test_a_document_that_fits_is_one_row_with_nothing_added(lengths: list[int], sep_id: int | None):
    chunks = chunks_of(lengths)
    sequence = joined(chunks, sep_id)
    (window,) = plan_windows(chunks, WindowSizes(max(1, len(sequence)), 0, 0), sep_id)
    assert window.row.ids.tolist() == sequence


def test_a_chunk_is_cut_only_when_no_core_holds_it():
    windows = list(plan_windows(chunks_of([10, 10, 10, 90, 10, 10]), WindowSizes(40, 5, 0), None))
    assert [[(p.index, p.stop - p.start) for p in window.parts] for window in windows] == [
        [(0, 10), (1, 10), (2, 10)],
        [(3, 30)],
        [(3, 30)],
        [(3, 30)],
        [(4, 10), (5, 10)],
    ]


def test_one_window_is_planned_before_the_next_is_read():
    n_read = 0

    def source() -> Iterator[ChunkTokens]:
        nonlocal n_read
        for chunk in chunks_of([10] * 100):
            n_read += 1
            yield chunk

    windows = plan_windows(source(), WindowSizes(50, 5, 0), None)
    n_closed = 0
    for window in windows:
        n_closed += len(window.parts)
        assert n_read <= n_closed + 2


def test_what_rides_along_is_the_title_and_the_heading():
    chunks = chunks_of([8] * 20)
    _, second, third, *_ = plan_windows(chunks, WindowSizes(48, 8, 10), SEP)
    heading = chunks[second.parts[0].index].heading_ids.tolist()[:5]
    assert second.row.ids.tolist()[: len(heading) + 2] != []
    for window in (second, third):
        heading = chunks[window.parts[0].index].heading_ids.tolist()[:5]
        tail = [*heading, SEP] if heading else []
        title = chunks[0].ids.tolist()[: 10 - len(tail) - 1]
        assert window.row.ids.tolist()[: len(title) + 1 + len(tail)] == [*title, SEP, *tail]


def test_parts_are_summed_and_counted():
    rng = np.random.default_rng(0)
    states = rng.standard_normal((70, 4), dtype=np.float32)
    running, chunk = RunningMean(), TextChunk(0, 1, "", "", 1, None, (), "")
    for start, stop in ((0, 30), (30, 31), (31, 70)):
        mean = running.add(Part(chunk, 0, 70, start, stop, stop == 70), states[start:stop].mean(axis=0))
    np.testing.assert_allclose(mean, states.mean(axis=0), rtol=1e-5, atol=1e-6)  # type: ignore[arg-type]
    alone = states[:5].mean(axis=0)
    assert running.add(Part(chunk, 1, 5, 0, 5, True), alone) is alone


def test_defaults_follow_the_model_and_each_other():
    assert WindowSizes.of(StreamOptions(), fake_spec(max_tokens=32768)) == WindowSizes(4096, 256, 0)
    assert WindowSizes.of(StreamOptions(), fake_spec(max_tokens=512)) == WindowSizes(512, 64, 0)
    assert (
        WindowSizes.of(StreamOptions(window=1024, margin=0, heading_tokens=9), fake_spec(max_tokens=2048)).margin == 0
    )


def test_a_window_stays_within_its_budget():
    spec = fake_spec(max_tokens=1 << 20)
    for window_mb in (5, 50, 500):
        window = window_within(window_mb, spec)
        assert window * spec.activation_bytes <= window_mb * 1_000_000 < (window + 1) * spec.activation_bytes
    assert window_within(500, fake_spec(max_tokens=512)) == 512
    with pytest.raises(InputError, match="at least 2 MB on top of the model"):
        window_within(1, fake_spec(dim=1024))


@pytest.mark.parametrize(
    ("window", "margin", "heading_tokens"),
    [(None, None, 64), (512, None, 64), (256, None, 32), (64, 24, 0), (64, 20, 8)],
)
def test_models_with_context_take_the_beginning_along_where_there_is_room(window, margin, heading_tokens: int):
    options = StreamOptions(window=window, margin=margin)
    assert WindowSizes.of(options, fake_spec(max_tokens=8192, contextual=True)).heading_tokens == heading_tokens
    assert WindowSizes.of(options, fake_spec(max_tokens=8192)).heading_tokens == 0
    assert (
        WindowSizes.of(replace(options, heading_tokens=0), fake_spec(max_tokens=8192, contextual=True)).heading_tokens
        == 0
    )
