"""Files to the index and back, by a fake model whose vectors depend on their tokens alone."""

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeSession, fake_embedder

from pplx_edge import Embedder, StreamOptions
from pplx_edge.errors import EdgeError, InputError
from pplx_search.indexer import Indexer, Report
from pplx_search.reader_thread import ReadAhead, Task
from pplx_search.settings import INDEX_OPTIONS, fingerprint_of, options_for, options_from, settings_of
from pplx_search.store import FileState, Filter, Query, Store, database, schema

OPTIONS = StreamOptions(chunk_tokens=32, window=128, margin=16)
FILES = {
    "fox.txt": "The quick brown fox jumps.\n\nOver the lazy dog, and the dog sleeps on.\n",
    "notes/learning.md": "# Notes\n\nSomething else altogether.\n\n## Learning\n\nDeep learning is machine learning.\n",
    "notes/deep/code.py": "def encode(texts):\n    return [model(text) for text in texts]\n",
    "notes/again.md": "# Notes\n\nSomething else altogether.\n\n## Learning\n\nDeep learning is machine learning.\n",
    "empty.txt": "",
    "long.txt": "\n\n".join(f"Paragraph {i} is about the fox and the number {i * 7}." for i in range(120)),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "files"


@pytest.fixture
def store(tmp_path: Path, folder: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "home", write=True) as opened:
        opened.collections.add("default")
        opened.collections.add_root("default", os.fsencode(folder))
        yield opened


def indexer(
    store: Store,
    session: FakeSession | None = None,
    name: str = "fake",
    model: Embedder | None = None,
    **options: object,
) -> Indexer:
    model = model or fake_embedder(session)
    return Indexer(store, model, OPTIONS, settings_of(name, model, OPTIONS), **options)  # type: ignore[arg-type]


def update(store: Store, session: FakeSession | None = None, **options: object) -> Report:
    report = indexer(store, session).update(**options)  # type: ignore[arg-type]
    assert store.check() == []
    return report


def passages(store: Store, words: str, model: Embedder, k: int = 3) -> list[tuple[str, str]]:
    codes = model.encode_query([words])[0]
    return [(os.fsdecode(hit.path), store.text(hit)) for hit in store.search(Query(codes=codes, words=words, k=k))]


def test_files_are_indexed_found_and_left_alone(store: Store, folder: Path) -> None:
    session = FakeSession()
    report = update(store, session)
    assert (report.indexed + report.known, report.failed, report.skipped) == (len(FILES), 0, 0)
    model = fake_embedder(session)
    path, text = passages(store, "Deep learning is machine learning", model)[0]
    assert path.endswith(("learning.md", "again.md"))
    assert "machine learning" in text
    n_batches = len(session.batches)
    again = update(store, session)
    assert (again.unchanged, again.indexed, again.n_tokens) == (len(FILES), 0, 0)
    assert len(session.batches) == n_batches


def test_vectors_are_those_of_a_stream_of_the_file(store: Store, folder: Path) -> None:
    update(store)
    assert_vectors_of_streams(store, folder, fake_embedder())


def test_a_real_model_indexes_and_finds(store: Store, folder: Path, tiny_model: Embedder) -> None:
    report = indexer(store, name="tiny", model=tiny_model).update()
    assert (report.indexed + report.known, report.failed) == (len(FILES), 0)
    assert store.check() == []
    assert_vectors_of_streams(store, folder, tiny_model)
    path, _ = passages(store, "Deep learning is machine learning", tiny_model)[0]
    assert path.endswith(("learning.md", "again.md"))


def assert_vectors_of_streams(store: Store, folder: Path, model: Embedder) -> None:
    for name in ("fox.txt", "long.txt"):
        expected = list(model.encode_stream(folder / name, options=StreamOptions(**_cut(OPTIONS, "text"))))
        found = store.search(
            Query(codes=expected[0].codes, k=1000, filter=Filter(folders=(os.fsencode(folder / name),)))
        )
        assert sorted((hit.start, hit.stop, hit.line) for hit in found) == [(v.start, v.stop, v.line) for v in expected]
        by_place = {(hit.start, hit.stop): hit.cosine for hit in found}
        for vector in expected:
            a, b = vector.codes.astype(float), expected[0].codes.astype(float)
            cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            assert by_place[vector.start, vector.stop] == pytest.approx(cosine, abs=1e-4)


def _cut(options: StreamOptions, format: str) -> dict[str, object]:
    return {
        "chunk_tokens": options.chunk_tokens,
        "window": options.window,
        "margin": options.margin,
        "markup": format,
    }


def test_equal_texts_are_embedded_once_and_shown_once(store: Store) -> None:
    update(store)
    hits = store.search(Query(words="machine learning", k=10))
    texts = [store.text(hit) for hit in hits if "machine" in store.text(hit)]
    assert len(texts) == 1
    assert next(hit for hit in hits if "machine" in store.text(hit)).copies == 1


def test_a_changed_file_is_read_again_and_its_old_text_goes(store: Store, folder: Path) -> None:
    update(store)
    (folder / "fox.txt").write_text("A zebra now.", encoding="utf-8")
    report = update(store)
    assert (report.indexed, report.unchanged) == (1, len(FILES) - 1)
    assert store.search(Query(words="zebra", k=5))
    assert not store.search(Query(words="lazy", k=5))


def test_a_moved_file_costs_nothing_and_a_deleted_one_is_forgotten(store: Store, folder: Path) -> None:
    session = FakeSession()
    update(store, session)
    (folder / "fox.txt").rename(folder / "notes" / "renamed.txt")
    (folder / "long.txt").unlink()
    report = update(store, session)
    assert (report.moved, report.forgotten, report.n_tokens) == (1, 1, 0)
    (hit,) = store.search(Query(words="lazy", k=5))
    assert os.fsdecode(hit.path).endswith("renamed.txt")


def test_a_folder_that_is_not_there_today_keeps_its_files(store: Store, folder: Path, tmp_path: Path) -> None:
    update(store)
    folder.rename(tmp_path / "elsewhere")
    report = update(store)
    assert [os.fspath(missing.path) for missing in report.missing] == [str(folder)]
    assert report.forgotten == 0
    assert store.search(Query(words="lazy", k=5))


def test_what_cannot_be_read_is_told_and_tried_again_on_request(store: Store, folder: Path) -> None:
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 cut short")
    report = update(store)
    assert report.failed == 1
    (failed,) = store.files.reports((FileState.FAILED,))
    assert (os.fsdecode(failed.path).rsplit("/")[-1], failed.attempts) == ("broken.pdf", 1)
    assert failed.message
    assert update(store).failed == 1
    assert next(store.files.reports((FileState.FAILED,))).attempts == 1
    assert update(store, retry=True).failed == 1
    assert next(store.files.reports((FileState.FAILED,))).attempts == 2


class Interrupted(Exception):
    """Stands in for a kill: raised in the middle of embedding."""


@pytest.mark.parametrize("after", [1, 3, 7, 20])
def test_an_interrupted_run_goes_on_where_it_was(store: Store, tmp_path: Path, folder: Path, after: int) -> None:
    whole = FakeSession()
    with Store.open(tmp_path / "whole", write=True) as other:
        other.collections.add("default")
        other.collections.add_root("default", os.fsencode(folder))
        indexer(other, whole).update()
        expected = _all_chunks(other)
    session = FakeSession()
    real, count = session.span_means, itertools.count(1)

    def failing(batch: object) -> np.ndarray:
        if next(count) > after:
            raise Interrupted
        return real(batch)  # type: ignore[arg-type]

    session.span_means = failing  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        indexer(store, session).update()
    assert store.check() == []
    fresh = FakeSession()
    update(store, fresh)
    assert _all_chunks(store) == expected
    assert len(fresh.batches) <= len(whole.batches)


def _all_chunks(store: Store) -> list[tuple[str, int, int, float]]:
    """Every chunk with its path and cosine to one vector."""
    codes = np.arange(256).astype(np.int8)
    hits = store.search(Query(codes=codes, k=10_000))
    return sorted((os.fsdecode(hit.path), hit.start, hit.stop, round(hit.cosine or 0, 5)) for hit in hits)


def test_a_text_with_a_vector_that_is_not_finite_fails_alone(store: Store, folder: Path) -> None:
    session = FakeSession()
    model = fake_embedder(session)
    (folder / "odd.txt").write_text("Ω", encoding="utf-8")
    session.nan_id = int(model.tokenizer.text_rows(["Ω"])[0].ids[0])
    report = update(store, session)
    assert report.failed == 1
    assert report.indexed + report.known == len(FILES)
    (failed,) = store.files.reports((FileState.FAILED,))
    assert (failed.code, os.path.basename(failed.path)) == ("model", b"odd.txt")


def test_other_vectors_are_made_while_the_old_ones_serve(store: Store) -> None:
    update(store)
    session = FakeSession()
    session.backend = "other"
    builder = indexer(store, session, name="other")
    assert not builder.generation.serving
    assert store.search(Query(words="lazy", k=5))
    builder.rebuild()
    serving = store.vectors.serving
    assert serving is not None
    assert serving.settings["model"] == "other"
    assert store.check() == []
    assert store.search(Query(words="lazy", k=5))


def test_progress_counts_files_bytes_and_tokens(store: Store) -> None:
    told = []
    model = fake_embedder()
    run = Indexer(store, model, OPTIONS, settings_of("fake", model, OPTIONS), on_progress=told.append)
    report = run.update()
    assert told[0].files == 0
    assert (told[-1].files, told[-1].n_files) == (len(FILES), len(FILES))
    assert told[-1].bytes == told[-1].n_bytes == sum(len(text.encode()) for text in FILES.values())
    assert told[-1].tokens == report.n_tokens > 500
    assert all(a.bytes <= b.bytes for a, b in itertools.pairwise(told))


def test_rules_of_a_collection_are_kept(store: Store, folder: Path) -> None:
    store.collections.add("default", {"exclude": ["notes/"], "include": ["*.txt", "*.md"]})
    update(store)
    found = {os.path.basename(report.path) for report in store.files.reports((FileState.UNCHANGED,))}
    assert found == {b"fox.txt", b"empty.txt", b"long.txt"}


# Settings


def test_settings_name_what_vectors_depend_on_and_can_be_read_back() -> None:
    model = fake_embedder()
    settings = settings_of("fake", model, OPTIONS)
    assert options_from(settings) == OPTIONS
    assert fingerprint_of(settings) == fingerprint_of(settings | {"model": "another name"})
    for change in ({"weights": "x"}, {"chunk_tokens": 33}, {"dim": 128}, {"backend": "mlx"}):
        assert fingerprint_of(settings | change) != fingerprint_of(settings)
    with pytest.raises(InputError, match="another release"):
        options_from({"model": "x"})


def test_an_index_with_the_old_name_of_a_setting_is_read_and_migrated(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options = fake_embedder(), StreamOptions(chunk_tokens=32, window=128, margin=16, heading_tokens=8)
    settings = settings_of("fake", model, options)
    old = {"sticky" if name == "heading_tokens" else name: value for name, value in settings.items()}
    home = tmp_path / "old"
    with monkeypatch.context() as earlier:
        earlier.setattr(database, "migrate", lambda file: schema.migrate(file, schema.MIGRATIONS[:2]))
        with Store.open(home, write=True) as store:
            store.collections.add("default")
            store.collections.add_root("default", os.fsencode(folder))
            Indexer(store, model, options, old).update()
            assert '"sticky": 8' in stored_settings(store)
    with Store.open(home) as store:
        assert store.vectors.serving is not None
        assert options_from(dict(store.vectors.serving.settings)) == options
        assert store.search(Query(words="lazy", k=5))
    with Store.open(home, write=True) as store:
        assert "sticky" not in stored_settings(store)
        again = Indexer(store, model, options, settings)
        assert again.generation.serving
        assert store.vectors.building is None
        assert again.update() == Report(unchanged=len(FILES))
        assert store.check() == []


def stored_settings(store: Store) -> str:
    """Return the settings of the only generation as they are in the database."""
    (row,) = store._database.rows("SELECT settings FROM generations")
    return row[0]


def test_options_shrink_with_what_a_model_reads() -> None:
    model = fake_embedder()  # 512 tokens
    options = options_for(model)
    assert (options.window, options.chunk_tokens) == (512, 128)
    assert options.margin == INDEX_OPTIONS.margin * 512 // 2048  # type: ignore[operator]


# Reading ahead


class StubReader:
    """Gives or raises what it is told for each path."""

    def __init__(self, answer: Callable[[Path], object]):
        self.answer = answer

    def read_all(self, wanted: Iterable[tuple[Path, str]]) -> Iterator[tuple[Path, object]]:
        for path, _ in wanted:
            yield path, self.answer(path)


def tasks(n: int) -> list[Task]:
    from pplx_search.ingest.walk import FoundFile

    return [Task(i, FoundFile(Path(f"/{i}"), 1, 0, 0, i, "text")) for i in range(n)]


def test_files_come_in_order_and_no_further_ahead_than_told() -> None:
    seen: list[str] = []

    def answer(path: Path) -> object:
        seen.append(path.name)
        return path

    with ReadAhead(StubReader(answer), tasks(200)) as ahead:  # type: ignore[arg-type]
        came = []
        for task, _ in ahead:
            came.append(task.file_id)
            assert len(seen) <= len(came) + 34
    assert came == list(range(200))


def test_closing_early_ends_the_thread() -> None:
    with ReadAhead(StubReader(lambda path: path), tasks(500)) as ahead:  # type: ignore[arg-type]
        next(iter(ahead))
    assert not ahead._thread.is_alive()


@pytest.mark.parametrize("error", [EdgeError("disk"), RuntimeError("bug")])
def test_what_is_not_of_a_file_is_raised(error: Exception) -> None:
    def answer(path: Path) -> object:
        raise error

    with (
        pytest.raises(EdgeError, match=r"disk|bug"),
        ReadAhead(StubReader(answer), tasks(3)) as ahead,  # type: ignore[arg-type]
    ):
        list(ahead)


def test_something_else_goes_on_while_a_file_is_waited_for() -> None:
    released = threading.Event()
    calls = 0

    def meanwhile() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            released.set()

    def answer(path: Path) -> object:
        assert released.wait(30)
        return path

    with ReadAhead(StubReader(answer), tasks(1), meanwhile) as ahead:  # type: ignore[arg-type]
        assert len(list(ahead)) == 1
    assert calls >= 3
