"""Embedding in threads: each text once, one thread at a time in the model, timely commits and isolated failures."""

import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeSession, fake_embedder

from pplx_edge import ChunkVector, StreamOptions
from pplx_edge.errors import NumericalError
from pplx_edge.types import TokenBatch
from pplx_search.documents import Document, Piece
from pplx_search.embedding import TextEmbedder
from pplx_search.ids import TextId
from pplx_search.settings import fingerprint_of, settings_of
from pplx_search.store import FileFacts, Store, text_digest

OPTIONS = StreamOptions(chunk_tokens=16, window=64, margin=8)


class SlowSession(FakeSession):
    """Sleeps in each pass, and records the highest number of threads that were in it at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seconds, self.inside, self.most_inside = 0.002, 0, 0

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        time.sleep(self.seconds)
        self.inside -= 1
        return super().span_means(batch)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "home", write=True) as opened:
        opened.collections.add("default")
        opened.collections.add_root("default", b"/files")
        yield opened


def embedder(store: Store, session: FakeSession, **options: object) -> TextEmbedder:
    model = fake_embedder(session)
    settings = settings_of("fake", model, OPTIONS)
    generation = store.vectors.use(fingerprint_of(settings), settings, model.dim)
    return TextEmbedder(store, model, generation, OPTIONS, **options)  # type: ignore[arg-type]


def stored(store: Store, texts: Sequence[str]) -> list[TextId]:
    """Store each text in a file of its own, and return their ids."""
    text_ids = []
    (root,) = store.collections.get("default").roots
    scan = store.files.scan(root.id)
    with store.transaction():
        for text in texts:
            number = zlib.crc32(text.encode()) + 1
            file = scan.see(FileFacts(path=f"/files/{number}.txt".encode(), size=len(text), inode=number)).file_id
            store.files.begin(file)
            document = Document(kind="text", pieces=(Piece(text),))
            text_ids.append(store.files.stage(file, document, text_digest(document)).text_id)
    return text_ids


def text(number: int, n_sentences: int = 3) -> str:
    return " ".join(f"Text {number} says the {i}th time that foxes and dogs learn." for i in range(n_sentences))


def n_chunks(store: Store, text_ids: Sequence[TextId]) -> list[int]:
    return [len(list(store.chunks(text_id))) for text_id in text_ids]


def test_the_model_runs_one_thread_at_a_time_and_embeds_every_text_once(store: Store):
    session = SlowSession()
    texts = embedder(store, session)
    text_ids = stored(store, [text(i, 1 + i % 7) for i in range(150)])
    texts.embed(text_ids)
    assert session.most_inside == 1
    assert all(n_chunks(store, text_ids))
    assert list(store.vectors.pending(texts.generation)) == []
    n_batches = len(session.batches)
    texts.embed(text_ids)
    assert len(session.batches) == n_batches
    assert not any(thread.name == "pplx-search-encoding" for thread in threading.enumerate())


def test_a_text_in_two_batches_is_embedded_once(store: Store):
    session = SlowSession()
    texts = embedder(store, session)
    text_ids = stored(store, [text(i) for i in range(6)])
    with texts:
        first, second = texts.begin(text_ids[:4]), texts.begin(text_ids[2:])
        assert second.postponed == text_ids[2:4]
        texts.finish(first)
        texts.finish(second)
        assert list(store.vectors.pending(texts.generation)) == []
    alone = FakeSession()
    with Store.open(store.directory.with_name("other"), write=True) as other:
        other.collections.add("default")
        other.collections.add_root("default", b"/files")
        embedder(other, alone).embed(stored(other, [text(i) for i in range(6)]))
    assert sum(batch.lengths.sum() for batch in session.batches) == sum(b.lengths.sum() for b in alone.batches)


def test_a_text_without_finite_vectors_only_fails_its_batches(store: Store):
    session = FakeSession()
    texts = embedder(store, session)
    session.nan_id = int(fake_embedder(session).tokenizer.text_rows(["Ω"])[0].ids[0])
    bad, good, shared = stored(store, ["Ω", text(1), text(2)])
    with texts:
        first, second = texts.begin([bad, shared]), texts.begin([good, shared, bad])
        with pytest.raises(NumericalError):
            texts.finish(first)
        with pytest.raises(NumericalError):  # because of the text that both contain
            texts.finish(second)
        assert all(n_chunks(store, [good]))
        texts.embed([shared])
        assert all(n_chunks(store, [shared]))
        with pytest.raises(NumericalError):
            texts.embed([bad])
    assert list(store.vectors.pending(texts.generation)) == [bad]


def test_vectors_are_committed_while_the_caller_waits_for_something_else(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pplx_search.embedding._COMMIT_SECONDS", 0.0)
    texts = embedder(store, SlowSession())
    text_ids = stored(store, [text(i) for i in range(40)])
    with texts, Store.open(store.directory) as reader:
        batch = texts.begin(text_ids)
        deadline = time.monotonic() + 30
        while not all(n_chunks(reader, text_ids)) and time.monotonic() < deadline:
            texts.keep()
        assert all(n_chunks(reader, text_ids))
        texts.finish(batch)


class Interrupted(Exception):
    """Stands in for Ctrl-C."""


def test_vectors_before_an_interruption_are_committed(store: Store):
    came: list[ChunkVector] = []

    def interrupting(vector: ChunkVector) -> None:
        came.append(vector)
        if len(came) == 20:
            raise Interrupted

    session = SlowSession()
    texts = embedder(store, session, on_vector=interrupting)
    text_ids = stored(store, [text(i) for i in range(60)])
    with pytest.raises(Interrupted):
        texts.embed(text_ids)
    assert sum(n_chunks(store, text_ids)) >= 20
    assert store.check() == []
    assert not any(thread.name == "pplx-search-encoding" for thread in threading.enumerate())
    rest = embedder(store, session)
    rest.embed(text_ids)
    assert list(store.vectors.pending(rest.generation)) == []
    assert store.check() == []


def test_a_text_with_an_unusable_position_is_embedded_from_the_start(store: Store):
    texts = embedder(store, FakeSession())
    (text_id,) = stored(store, [text(1, 40)])
    progress = store.vectors.begin(text_id, texts.generation)
    vectors = list(fake_embedder().encode_stream(text(1, 40), options=OPTIONS))
    foreign = list(fake_embedder().encode_stream(text(2, 40), options=OPTIONS))
    store.vectors.append(progress.embedding_id, foreign[:3])  # as after an update that changes the chunks
    texts.embed([text_id])
    found = [(chunk.start, chunk.stop) for chunk in store.chunks(text_id)]
    assert found == [(vector.start, vector.stop) for vector in vectors]
    assert all(np.array_equal(a.codes, b.codes) for a, b in zip(store.chunks(text_id), vectors, strict=True))
    assert store.check() == []
