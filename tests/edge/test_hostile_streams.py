"""Streams that mean no good: bounded memory, every character once, and an error that says where."""

import tracemalloc
from collections.abc import Iterator

import pytest
from fakes import FakeSession, fake_embedder, fake_spec

from pplx_edge.errors import InputError
from pplx_edge.types import StreamOptions

OPTIONS = StreamOptions(window=512, margin=32, chunk_tokens=64, heading_tokens=16)
STREAMS = {
    "no blanks": "abcdefghij",
    "newlines": "\n",
    "newlines of Windows": "\r\n",
    "combining marks": "\u0301",
    "an unclosed fence": "```\n# no heading\n",
    "headings": "# h\n",
    "deeper and deeper headings": "###### x\n",
    "zero bytes": "\0",
    "the separator's text": "<|endoftext|>",
    "joined people": "👩\u200d",
    "full stops": ".",
    "spaces and a letter": " " * 5000 + "x",
    "one word on each line": "x\n",
}


def drip(unit: str, n_chars: int) -> Iterator[str]:
    piece = unit * max(1, 1000 // len(unit))
    for _ in range(n_chars // len(piece)):
        yield piece


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_of_one_thing_is_read_to_its_end_in_little_memory(kind: str):
    n_chars = 40_000
    model = fake_embedder(FakeSession(spec=fake_spec(max_tokens=512)))
    expected = "".join(drip(STREAMS[kind], n_chars))
    tracemalloc.start()
    position = 0
    for vector in model.encode_stream(drip(STREAMS[kind], n_chars), options=OPTIONS):
        assert not expected[position : vector.start].strip()
        position = vector.stop
        model.session.batches.clear()  # type: ignore[attr-defined]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not expected[position:].strip()
    assert peak < 30_000_000


def test_a_reader_that_raises_and_a_lone_surrogate_come_after_what_is_final():
    def reader() -> Iterator[str]:
        yield from drip("The dog sleeps on. ", 50_000)
        yield "\ud800"

    found = []
    stream = fake_embedder().encode_stream(reader(), options=OPTIONS)
    with pytest.raises(InputError, match="lone surrogate at character 49,400 "):
        found.extend(vector.stop for vector in stream)
    assert len(found) > 300


@pytest.mark.slow
def test_a_line_of_fifty_megabytes_without_a_space_is_read_in_bounded_memory():
    n_pieces, piece = 12_500, "abcdefghijklmnopqrst" * 200
    session = FakeSession()
    tracemalloc.start()
    try:
        stop = n_chunks = peak_early = 0
        for vector in fake_embedder(session).encode_stream(
            (piece for _ in range(n_pieces)), options=StreamOptions(window=512, chunk_tokens=128)
        ):
            assert vector.start == stop
            stop, n_chunks = vector.stop, n_chunks + 1
            session.batches.clear()
            if n_chunks == 100:
                peak_early = tracemalloc.get_traced_memory()[1]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert stop == n_pieces * len(piece) == 50_000_000
    assert peak < 1.5 * peak_early
