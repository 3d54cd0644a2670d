"""Streams against slow and obvious oracles: every chunk once, in order, with the context that was promised."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fakes import FakeSession, fake_embedder, fake_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError, NumericalError
from pplx_edge.types import ChunkVector, StreamOptions, TokenBatch

SMALL = StreamOptions(window=48, margin=8, chunk_tokens=10, separator=True)
SENTENCES = [
    "The quick brown fox. ",
    "# Deep learning\n\n",
    "機械学習とは何ですか。",
    "Der Hund.\n\n",
    "learning " * 9,
    "x\n",
]
TEXT = "".join(SENTENCES[i % len(SENTENCES)] for i in range(40))

texts = st.lists(st.sampled_from([*SENTENCES, " ", "\n", "e\u0301", "<|endoftext|>"]), max_size=40).map("".join)


class ContextSession(FakeSession):
    """A token's state depends on the whole row and on its place in it, so that another window is another vector."""

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        own = super().token_states(batch)
        real = own * batch.attention_mask[..., None]
        return own + real.sum(axis=1, keepdims=True) / 16 + np.arange(own.shape[1])[None, :, None] / 64


def embedder(max_tokens: int = 512) -> Embedder:
    return fake_embedder(ContextSession(spec=fake_spec(max_tokens=max_tokens)))


def same(a: list[ChunkVector], b: list[ChunkVector]) -> bool:
    return len(a) == len(b) and all(told(x) == told(y) for x, y in zip(a, b, strict=True))


def told(vector: ChunkVector) -> tuple[Any, ...]:
    """All that a vector holds, as something that can be compared."""
    plain = (vector.start, vector.stop, vector.line, vector.page, vector.heading, vector.tokens, vector.position)
    return (*plain, vector.codes.dtype, vector.codes.tobytes())


def taken(stream: Iterator[Any]) -> tuple[list[Any], Any]:
    """Return the items of a stream until it raises, and the error, or None."""
    found = []
    try:
        for each in stream:
            found.append(each)
    except Exception as error:
        return found, error
    return found, None


# One window


@given(texts)
def test_a_text_that_fits_is_encoded_as_its_chunks(text: str):
    model = embedder(max_tokens=1 << 14)
    options = StreamOptions(chunk_tokens=12, separator=True, window=1 << 14, margin=100)
    vectors = list(model.encode_stream(text, options=options))
    expected = model.encode_chunks([[text[v.start : v.stop] for v in vectors]])[0]
    assert [v.codes.tobytes() for v in vectors] == [row.tobytes() for row in expected]
    assert len(model.session.batches) == 2 * bool(vectors)


@pytest.mark.parametrize("precision", ["int8", "binary", "ubinary", "float32"])
def test_a_real_model_gives_the_codes_of_encode_chunks(tiny_model: Embedder, precision: Any):
    options = StreamOptions(chunk_tokens=16, separator=True)
    vectors = list(tiny_model.encode_stream(TEXT[:300], precision, dim=64, options=options))
    assert len(vectors) > 5
    expected = tiny_model.encode_chunks([[TEXT[v.start : v.stop] for v in vectors]], precision, dim=64)[0]
    assert np.array_equal(np.stack([v.codes for v in vectors]), expected)
    assert vectors[0].codes.dtype == expected.dtype


def test_a_real_model_reads_windows_goes_on_and_serves_many_documents(tiny_model: Embedder):
    documents = [TEXT, TEXT[:200], "x " * 300]
    alone = [list(tiny_model.encode_stream(text, options=SMALL)) for text in documents]
    assert len(alone[0]) > 30
    assert same(list(tiny_model.encode_stream(iter(TEXT), options=SMALL)), alone[0])
    rest = list(tiny_model.encode_stream(TEXT, options=SMALL, resume=alone[0][20].position))
    assert same(rest, alone[0][21:])
    together = list(tiny_model.encode_streams(documents, options=SMALL))
    for i, vectors in enumerate(alone):
        assert same([vector for document, vector in together if document == i], vectors)


def test_contextual_models_take_a_separator_and_plain_ones_do_not():
    for contextual in (True, False):
        session = FakeSession(spec=fake_spec(contextual=contextual))
        list(fake_embedder(session).encode_stream("One. Two. Three.", options=StreamOptions(chunk_tokens=6)))
        n_separators = int((session.batches[0].input_ids == session.spec.sep_id).sum())
        assert (n_separators > 0) == contextual


def test_without_separators_the_blanks_between_chunks_are_read():
    session = FakeSession()
    model = fake_embedder(session)
    list(model.encode_stream(" One fox.\n\nTwo dogs.", options=StreamOptions(chunk_tokens=10, separator=False)))
    assert session.batches[0].input_ids.tolist() == [
        model.tokenizer.text_rows([" One fox.\n\nTwo dogs."])[0].ids.tolist()
    ]


# Windows


@settings(max_examples=30)
@given(texts, st.integers(0, 10), st.integers(0, 6))
def test_every_chunk_comes_once_and_in_order(text: str, heading_tokens: int, overlap: int):
    options = StreamOptions(
        window=40, margin=6, chunk_tokens=12, separator=True, heading_tokens=heading_tokens, overlap=overlap
    )
    position, n_tokens = 0, []
    model = embedder()
    for vector in model.encode_stream(text, options=options):
        assert vector.stop > position
        assert not text[position : vector.start].strip()
        assert overlap or vector.start >= position
        position = vector.stop
        n_tokens.append(vector.tokens)
    assert not text[position:].strip()
    assert all(len(row) <= 40 for batch in model.session.batches for row in batch.input_ids)


def test_a_chunk_that_is_longer_than_a_core_is_summed_over_windows():
    session = FakeSession()  # a mean does not depend on its context here
    model = fake_embedder(session)
    text = "learning is a kind of machine " * 20
    options = StreamOptions(window=32, margin=4, chunk_tokens=200)
    vectors = list(model.encode_stream(text, "float32", options=options))
    assert max(v.tokens for v in vectors) > 100
    for vector in vectors:
        ids = model.tokenizer.text_rows([text[vector.start : vector.stop]])[0].ids
        np.testing.assert_allclose(vector.codes, session.table[ids].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_the_title_and_the_headings_ride_along():
    session = FakeSession()
    model = fake_embedder(session)
    text = "Foxes and dogs\n\n" + "# Food\n\n" + "The fox sleeps. " * 60 + "\n\n## Fish\n\n" + "The dog sleeps. " * 60
    list(
        model.encode_stream(
            text, options=StreamOptions(window=100, margin=8, heading_tokens=30, chunk_tokens=20, separator=True)
        )
    )
    sep = [session.spec.sep_id]
    rows = [batch.input_ids[0].tolist() for batch in session.batches]
    title = next(iter(model.encode_stream(text, options=StreamOptions(chunk_tokens=20)))).stop
    title_ids = model.tokenizer.text_rows([text[:title]])[0].ids.tolist()
    heading = model.tokenizer.text_rows(["Food > Fish"])[0].ids.tolist()[:15]
    assert rows[0][: len(title_ids)] == title_ids
    expected = [*title_ids[: 30 - len(heading) - 2], *sep, *heading, *sep]
    assert rows[-1][: len(expected)] == expected


def test_nothing_is_read_ahead_but_a_window_and_a_block():
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 20
            yield "The dog sleeps on. \n"

    stream = embedder().encode_stream(endless(), options=SMALL)
    block, window_chars = 8192, 48 * 20
    for vector, _ in zip(stream, range(4000), strict=False):
        assert read <= vector.stop + 2 * block + window_chars


def test_the_session_is_asked_for_one_window_at_a_time():
    model = embedder()
    stream = model.encode_stream(TEXT * 20, options=SMALL)
    assert model.session.batches == []
    next(stream)
    assert len(model.session.batches) == 1
    list(stream)
    assert len(model.session.batches) > 100


def test_closing_the_stream_closes_its_source():
    closed = []

    def source() -> Iterator[str]:
        try:
            while True:
                yield TEXT
        finally:
            closed.append(True)

    stream = embedder().encode_stream(source(), options=SMALL)
    next(stream)
    stream.close()
    assert closed == [True]
    assert list(stream) == []


def test_what_a_reader_raises_comes_after_the_final_vectors():
    def source() -> Iterator[str]:
        yield TEXT * 30
        raise OSError("gone")

    whole = list(embedder().encode_stream(TEXT * 30, options=SMALL))
    found, error = taken(embedder().encode_stream(source(), options=SMALL))
    assert isinstance(error, OSError)
    assert 50 < len(found) < len(whole)
    assert same(found, whole[: len(found)])


def test_a_vector_that_is_not_finite_is_named():
    session = FakeSession(nan_id=5)
    session.nan_id = fake_embedder(session).tokenizer.text_rows(["x"])[0].ids[0]
    with pytest.raises(NumericalError, match="document 0, chunk"):
        list(fake_embedder(session).encode_stream(TEXT, options=SMALL))


# Resume


def test_a_stream_goes_on_from_every_position():
    whole = list(embedder().encode_stream(TEXT, options=SMALL))
    assert len(whole) > 30
    for i, vector in enumerate(whole):
        model = embedder()
        rest = list(model.encode_stream(TEXT, options=SMALL, resume=vector.position))
        assert same(rest, whole[i + 1 :])
        assert len(model.session.batches) <= 2 + (len(whole) - i) // 2


@settings(max_examples=15)
@given(texts.filter(str.strip), st.integers(1, 60), st.data())
def test_a_stream_with_long_chunks_goes_on_from_any_position(text: str, chunk_tokens: int, data: st.DataObject):
    options = StreamOptions(window=32, margin=4, chunk_tokens=chunk_tokens, heading_tokens=4, overlap=chunk_tokens // 4)
    whole = list(embedder().encode_stream(text, options=options))
    i = data.draw(st.integers(0, len(whole) - 1))
    assert same(list(embedder().encode_stream(text, options=options, resume=whole[i].position)), whole[i + 1 :])


def test_another_text_or_setting_is_refused_and_named():
    position = list(embedder().encode_stream(TEXT, options=SMALL))[20].position
    with pytest.raises(InputError, match="text up to character"):
        list(embedder().encode_stream("X" + TEXT[1:], options=SMALL, resume=position))
    with pytest.raises(InputError, match="the source has 3 chunks"):
        list(embedder().encode_stream(TEXT[:40], options=SMALL, resume=position))
    with pytest.raises(InputError, match='precision was "int8" and is now "binary"'):
        embedder().encode_stream(TEXT, "binary", options=SMALL, resume=position)
    options = StreamOptions(window=64, margin=4, chunk_tokens=10, separator=True)
    with pytest.raises(InputError, match="window was 48 and is now 64; margin was 8 and is now 4"):
        embedder().encode_stream(TEXT, options=options, resume=position)
    other = embedder()
    other.fingerprint = "others"
    with pytest.raises(InputError, match="model was"):
        other.encode_stream(TEXT, options=SMALL, resume=position)


@pytest.mark.parametrize("token", ["", "x", "!!!", "bnVsbA", "WzEsMiwzXQ", "WzEsLTEsMywiYSJd", "é"])
def test_what_is_no_position_is_refused(token: str):
    with pytest.raises(InputError, match="resume: not a stream position"):
        embedder().encode_stream(TEXT, options=SMALL, resume=token)


# Pieces


@settings(max_examples=25)
@given(texts, st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_how_a_stream_is_cut_into_pieces_changes_nothing(text: str, sizes: list[int]):
    text = text * 3

    def cut() -> Iterator[str]:
        position = i = 0
        while position < len(text):
            yield text[position : position + sizes[i % len(sizes)]]
            position, i = position + sizes[i % len(sizes)], i + 1

    assert same(
        list(embedder().encode_stream(cut(), options=SMALL)), list(embedder().encode_stream(text, options=SMALL))
    )


# Many documents


@settings(max_examples=25)
@given(st.lists(texts | st.just(TEXT), max_size=8))
def test_many_documents_give_what_each_gives_alone(documents: list[str]):
    found = list(embedder().encode_streams(iter(documents), options=SMALL))
    alone = [(i, v) for i, text in enumerate(documents) for v in embedder().encode_stream(text, options=SMALL)]
    assert [i for i, _ in found] == [i for i, _ in alone]
    assert same([v for _, v in found], [v for _, v in alone])


def test_short_documents_share_passes():
    session = FakeSession()
    list(fake_embedder(session).encode_streams(["The fox."] * 100))
    assert len(session.batches) < 25


def test_documents_are_taken_as_they_are_needed():
    taken = []

    def documents() -> Iterator[str]:
        for i in range(1000):
            taken.append(i)
            yield "The fox sleeps on. " * 10

    stream = fake_embedder(FakeSession(spec=fake_spec(max_tokens=512))).encode_streams(documents())
    next(stream)
    assert len(taken) < 40


def test_a_document_that_fails_is_named_and_those_before_it_are_there():
    documents = ["One fox.", "Two.", "\ud800", "Three."]
    found, error = taken(embedder().encode_streams(documents, options=SMALL))
    assert [i for i, _ in found] == [0, 1]
    assert "lone surrogate" in str(error)
    assert error.__notes__ == ["in document 2"]


def test_a_vector_that_is_not_finite_ends_many_documents_once():
    session = FakeSession()
    session.nan_id = fake_embedder(session).tokenizer.text_rows(["x"])[0].ids[0]
    found, error = taken(fake_embedder(session).encode_streams(["One dog.", "Two.", "x", "Three."]))
    assert isinstance(error, NumericalError)
    assert [i for i, _ in found] == [0, 1]


def test_many_documents_go_on_within_the_first():
    documents = [TEXT, "One fox.", TEXT[:100]]
    whole = list(embedder().encode_streams(documents, options=SMALL))
    rest = list(embedder().encode_streams(documents, options=SMALL, resume=whole[7][1].position))
    assert [i for i, _ in rest] == [i for i, _ in whole[8:]]
    assert same([v for _, v in rest], [v for _, v in whole[8:]])


# Asynchronous


def test_the_asynchronous_twin_gives_the_same_and_never_runs_ahead():
    model = embedder()
    whole = list(embedder().encode_stream(TEXT, options=SMALL))

    async def collect() -> list[ChunkVector]:
        found = []
        async for vector in model.encode_stream_async(TEXT, options=SMALL):
            found.append(vector)
            assert len(model.session.batches) <= 1 + len(found)
        return found

    assert same(asyncio.run(collect()), whole)


def test_closing_the_asynchronous_twin_closes_the_source_and_its_thread():
    closed = threading.Event()

    def source() -> Iterator[str]:
        try:
            while True:
                yield TEXT
        finally:
            closed.set()

    async def first() -> None:
        stream = embedder().encode_stream_async(source(), options=SMALL)
        await anext(stream)
        await stream.aclose()

    asyncio.run(first())
    assert closed.wait(30)


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: StreamOptions(window=0), "window must be a whole number"),
        (lambda: StreamOptions(window=True), "window must be a whole number"),
        (lambda: StreamOptions(window=64, window_mb=64), "cannot be combined"),
        (lambda: StreamOptions(overlap=65), "more than half"),
        (lambda: StreamOptions(markup="pdf"), "unknown markup 'pdf'"),  # type: ignore[arg-type]
        (lambda: StreamOptions(separator="x"), "separator must be"),  # type: ignore[arg-type]
        (lambda: StreamOptions(window=1024), "reads at most 512 tokens"),
        (lambda: StreamOptions(window=64, margin=30), "at least a quarter"),
    ],
)
def test_options_that_cannot_be_served_are_refused_at_once(options: Callable[[], StreamOptions], message: str):
    with pytest.raises(InputError, match=message):
        embedder().encode_stream(TEXT, options=options())


def test_a_budget_of_memory_becomes_a_window():
    model = embedder(max_tokens=100_000)
    small, large = (model._streams("int8", None, StreamOptions(window_mb=mb)).sizes for mb in (4, 40))
    assert 9 * small.window < large.window < 11 * small.window
    with pytest.raises(InputError, match=r"needs at least \d MB on top of the model"):
        fake_embedder(FakeSession(spec=fake_spec(dim=4096))).encode_stream(TEXT, options=StreamOptions(window_mb=1))
