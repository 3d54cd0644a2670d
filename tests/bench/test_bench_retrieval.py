"""`pplx-edge bench search retrieval`: files, passages found again in the index, figures, chunks read alone."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_embedder

import pplx_edge
from pplx_bench.retrieval.beir import RetrievalTask, TaskPassage, TaskQuery
from pplx_bench.search.alone import ChunksAlone
from pplx_bench.search.files import write_files
from pplx_bench.search.passages import Passages, chunk_bounds, find_passages, locate
from pplx_bench.search.retrieval import sampled, score
from pplx_cli import main
from pplx_edge import Embedder, StreamOptions
from pplx_search.ids import ChunkId, DocumentId, TextId
from pplx_search.indexer import Indexer
from pplx_search.settings import settings_of
from pplx_search.store import Hit, Store

OPTIONS = StreamOptions(chunk_tokens=24, window=128, margin=16)
SUBJECTS = ("Kiwi", "Heron", "Granite", "Violin", "Glacier", "Lantern", "Saffron", "Orbit")
TEXTS = (
    "{0}: the first that anybody wrote of it, in a well-known half-forgotten book, says nothing of its well-being.",
    "Its price rose to 4,711 < 5,000 & fell again; ‘naïve’ buyers, among them Zoë Müller, called it ﬁne.",
    "# The heading that is none\n- nor is this an item\n```",
    "What is said twice.",
    "What is said twice.",
    "At the end {0} lies where the long-drawn-out and wind-swept north-western coast of the twenty-first island ends. "
    * 6,
)


@pytest.fixture
def task() -> RetrievalTask:
    """Documents of six passages; the third, whose turn is PDF, has letters that its font lacks; two share a title."""
    corpus = []
    for number, subject in enumerate(SUBJECTS):
        title = "Glacier: a/b" if subject == "Lantern" else f"{subject}: a/b"
        for piece, text in enumerate(TEXTS):
            text = text.format(subject) + (" 冰川" if number == 2 else "")
            corpus.append(TaskPassage(f"{number}-{piece}", text, title, f"doc {number}", piece))
    queries = tuple(TaskQuery(f"q{i}", f"Where does {subject} lie?") for i, subject in enumerate(SUBJECTS))
    judgements = {query.id: {f"{i}-5": 1} for i, query in enumerate(queries)}
    return RetrievalTask("made-up", tuple(corpus), queries, judgements)


@pytest.fixture(scope="module")
def nano() -> Iterator[Embedder]:
    with pplx_edge.load("nano", offline=True, threads=1) as model:
        yield model


def indexed(folder: Path, home: Path, model: Embedder) -> Store:
    store = Store.open(home, write=True)
    store.collections.add("files")
    store.collections.add_root("files", os.fsencode(folder))
    Indexer(store, model, OPTIONS, settings_of("fake", model, OPTIONS)).update()
    return store


def letters(text: str) -> str:
    return "".join(each for each in text.replace("ﬁ", "fi") if each.isalnum())


def test_documents_become_files_of_four_formats_and_all_passages_are_found_in_the_index(
    task: RetrievalTask, tmp_path: Path
):
    written = write_files(task, tmp_path / "files")
    assert written.formats == {"md": 2, "html": 2, "docx": 3, "pdf": 1}
    assert written.not_pdf == 1
    names = {file.path.name for file in written.files}
    assert {"Kiwi a b.md", "Granite a b.docx", "Glacier a b.md", "Glacier a b (2).html"} <= names
    with indexed(tmp_path / "files", tmp_path / "home", fake_embedder()) as store:
        found = find_passages(store, task, written.files)
        titles = {document.title for document in store.documents()}
        assert titles == {passage.title for passage in task.corpus}
        texts = {
            place: letters(store.read(content, start, stop))
            for content, spans in found.spans.items()
            for start, stop, place in spans
        }
    assert found.missing == frozenset()
    assert texts == {place: letters(passage.text) for place, passage in enumerate(task.corpus)}


def test_files_say_the_same_each_time(task: RetrievalTask, tmp_path: Path):
    first, second = (write_files(task, tmp_path / name) for name in ("a", "b"))
    assert [file.path.name for file in first.files] == [file.path.name for file in second.files]
    same = [a.path.read_bytes() == b.path.read_bytes() for a, b in zip(first.files, second.files, strict=True)]
    assert all(same[i] for i, file in enumerate(first.files) if file.path.suffix != ".docx")  # zip holds the time


def test_a_file_that_is_lost_leaves_its_passages_unfindable(task: RetrievalTask, tmp_path: Path):
    written = write_files(task, tmp_path / "files")
    written.files[3].path.unlink()
    with indexed(tmp_path / "files", tmp_path / "home", fake_embedder()) as store:
        found = find_passages(store, task, written.files)
    assert found.missing == frozenset(written.files[3].passages)


def test_a_passage_without_a_document_is_a_file(task: RetrievalTask, tmp_path: Path):
    corpus = tuple(replace(passage, doc_id=None, title="") for passage in task.corpus[:5])
    written = write_files(replace(task, corpus=corpus), tmp_path / "files")
    assert [file.passages for file in written.files] == [(0,), (1,), (2,), (3,), (4,)]
    assert [file.path.name for file in written.files][:2] == ["document.md", "document (2).html"]


def test_passages_are_located_whatever_became_of_lines_hyphens_and_letters():
    text = "Title\n\nA well-\nknown ﬁnd,\n\nwrit-\nten in Zu\u0308rich.\fAgain. Again. The end\\."
    passages = ["A well-known find, written in Zürich.", "Again.", "not there", "Again.", "—", "The end."]
    spans = locate(text, passages)
    found = [None if span is None else text[slice(*span)] for span in spans]
    first = "A well-\nknown ﬁnd,\n\nwrit-\nten in Zu\u0308rich"
    assert found == [first, "Again", None, "Again", None, "The end"]
    assert spans[1] != spans[3]


def hit(text_id: int, start: int, stop: int, chunk_id: int) -> Hit:
    return Hit(
        chunk_id=ChunkId(chunk_id),
        document_id=DocumentId(text_id),
        text_id=TextId(text_id),
        path=b"",
        part="",
        title="",
        kind="text",
        collection="files",
        date=None,
        start=start,
        stop=stop,
        line=1,
        page=None,
        heading=(),
        score=0.0,
        cosine=None,
        bm25=None,
        ranks={},
    )


def test_a_chunk_stands_for_the_passages_that_it_holds_something_of():
    passages = Passages({1: [(0, 100, 0), (110, 150, 1), (160, 200, 2)]}, frozenset(), {})
    whole, half, none = hit(1, 50, 200, 1), hit(1, 0, 130, 2), hit(2, 0, 200, 3)
    assert passages.shown(whole) == [1, 2, 0]
    assert passages.shown(half) == [0, 1]
    assert passages.shown(none) == []
    assert passages.ranking([none, half, whole]) == [0, 1, 2]


def test_a_perfect_ranking_has_the_best_figures_and_a_wrong_one_the_worst(task: RetrievalTask):
    n = len(TEXTS)
    spans = {number: [(100 * i, 100 * i + 90, n * number + i) for i in range(n)] for number in range(len(SUBJECTS))}
    texts = {place: frozenset({place // n}) for place in range(len(task.corpus))}
    passages = Passages(spans, frozenset(), texts)
    right = [[hit(i, 500, 590, i)] for i in range(len(SUBJECTS))]
    assert set(score(task, task.queries, passages, right).values()) == {1.0}
    wrong = [[hit(i, 0, 90, 100 + i)] for i in range(len(SUBJECTS))]
    figures = score(task, task.queries, passages, wrong)
    assert {name for name, figure in figures.items() if figure} == {"file@1", "file@10"}
    second = [[*a, *b] for a, b in zip(wrong, right, strict=True)]
    figures = score(task, task.queries, passages, second)
    assert figures["mrr@10"] == 0.5
    assert figures["ndcg@10"] == pytest.approx(1 / np.log2(3))
    assert (figures["shown@1"], figures["shown@10"]) == (0, 1)
    nothing = score(task, task.queries, passages, [[] for _ in SUBJECTS])
    assert set(nothing.values()) == {0.0}


def test_chunks_alone_are_the_chunks_of_the_stream_with_the_codes_of_encode(nano: Embedder):
    text = "\n\n".join(f"# Part {i}\n\n{TEXTS[i % 2].format(subject)}" for i, subject in enumerate(SUBJECTS))
    alone, late = ChunksAlone(nano), list(nano.encode_streams([text, "", TEXTS[1]], options=OPTIONS))
    found = list(alone.encode_streams([text, "", TEXTS[1]], options=OPTIONS))
    assert [(i, v.start, v.stop, v.heading, v.tokens) for i, v in found] == [
        (i, v.start, v.stop, v.heading, v.tokens) for i, v in late
    ]
    expected = nano.encode([(text, "", TEXTS[1])[i][v.start : v.stop] for i, v in found])
    assert np.array_equal([v.codes for _, v in found], expected)
    assert not np.array_equal([v.codes for _, v in late], expected)
    rest = list(alone.encode_stream(text, options=OPTIONS, resume=found[2][1].position))
    assert [v.index for v in rest] == list(range(3, rest[-1].index + 1))
    assert np.array_equal(rest[0].codes, expected[3])


def test_the_index_has_equal_chunks_in_both_readings(task: RetrievalTask, tmp_path: Path, nano: Embedder):
    write_files(task, tmp_path / "files")
    with indexed(tmp_path / "files", tmp_path / "late", nano) as store:
        bounds = chunk_bounds(store)
    with indexed(tmp_path / "files", tmp_path / "alone", ChunksAlone(nano)) as store:
        assert chunk_bounds(store) == bounds
        (document, *_) = store.documents()
        for chunk in store.chunks(document.text_id):
            text = store.read(document.text_id, chunk.start, chunk.stop)
            assert np.array_equal(chunk.codes, nano.encode([text])[0])


def test_queries_are_drawn_the_same_each_time(task: RetrievalTask):
    queries = [TaskQuery(str(i), "") for i in range(50)]
    drawn = sampled(queries, 10)
    assert drawn == sampled(queries, 10)
    assert len(set(drawn)) == 10
    assert sampled(queries, 60) == queries


def test_a_library_that_is_not_installed_is_named_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "docx", None)
    assert main(["bench", "search", "retrieval", str(tmp_path), "--work", str(tmp_path)]) == 2
    assert "(docx is not installed) needs: pip install 'pplx-edge[quality]'" in capsys.readouterr().err


def test_a_small_run(task: RetrievalTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "bench" / task.name
    folder.mkdir(parents=True)
    rows = [
        {"_id": p.id, "title": p.title, "text": p.text, "doc_id": p.doc_id, "chunk_idx": p.chunk_idx}
        for p in task.corpus
    ]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    asked = [{"_id": query.id, "text": query.text} for query in task.queries]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    judged = [f"{query}\t{passage}\t{grade}" for query, g in task.qrels.items() for passage, grade in g.items()]
    (folder / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]), encoding="utf-8")
    options = [
        "--tasks",
        task.name,
        "--questions",
        "5",
        "--chunk-tokens",
        "48",
        "--threads",
        "1",
    ]
    results, work = tmp_path / "found.jsonl", tmp_path / "work"
    output = ["--json", str(results), "--work", str(work)]
    assert main(["bench", "search", "retrieval", str(tmp_path / "bench"), *options, *output]) == 0
    printed = capsys.readouterr().out
    for what in (
        "nDCG@10 × 100",
        "file@10 × 100",
        "hybrid, late chunking",
        "dense, chunks alone",
        "chunks of 48 tokens",
    ):
        assert what in printed
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [(line["system"], line["reading"]) for line in lines] == [
        ("words", None),
        ("dense", "late chunking"),
        ("hybrid", "late chunking"),
        ("dense", "chunks alone"),
        ("hybrid", "chunks alone"),
    ]
    assert {(line["missing"], line["failed"], line["questions"], line["files"]) for line in lines} == {(0, 0, 5, 8)}
    assert lines[0]["metrics"]["file@1"] == 1  # by its name, which stands in its document alone
    assert list(work.iterdir()) == []
