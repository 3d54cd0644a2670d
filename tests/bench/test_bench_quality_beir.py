"""Reading of folders in BEIR layout: what is in a task, and the one line that says what is wrong with it."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from beir_folders import PASSAGES, QUERIES, corpus_rows, judged_lines, query_rows, write_lines, write_task

from pplx_bench.retrieval.beir import read_task, task_folders
from pplx_edge.errors import InputError


def test_a_packed_task_is_read_whole(tmp_path: Path):
    task = read_task(write_task(tmp_path / "little"))
    assert task.name == "little"
    assert [passage.id for passage in task.corpus] == sorted(f"{d}#{n}" for d, n, _ in PASSAGES)
    assert {passage.id: passage.text for passage in task.corpus} == {f"{d}#{n}": text for d, n, text in PASSAGES}
    assert {query.id: query.text for query in task.queries} == {name: text for name, (text, _) in QUERIES.items()}
    assert task.qrels == {name: grades for name, (_, grades) in QUERIES.items()}
    assert ({query.lang for query in task.queries}, sum(map(len, task.qrels.values())), task.left_out) == ({"en"}, 9, 0)
    assert task.is_contextual


def test_the_pieces_of_a_document_are_in_the_order_of_their_numbers(tmp_path: Path):
    rows = [{"_id": f"p{9 - i}", "text": str(i), "doc_id": "d", "chunk_idx": i} for i in range(10)]
    qrels = judged_lines({"q1": {"p3": 1}})
    task = read_task(write_task(tmp_path / "t", rows, query_rows()[:1], qrels))
    (places,) = task.documents
    assert [task.corpus[place].text for place in places] == [str(i) for i in range(10)]


def test_the_ordinary_layout_is_read_and_the_queries_of_other_splits_are_left_out(tmp_path: Path):
    judged = {"q1": QUERIES["q1"][1], "q2": QUERIES["q2"][1]}
    folder = write_task(
        tmp_path / "t", corpus_rows(False), qrels=judged_lines(judged), packed=False, qrels_file="qrels/test.tsv"
    )
    write_lines(folder / "qrels" / "dev.tsv", judged_lines({"q3": {"bread#2": 1}}))
    task = read_task(folder)
    assert ([query.id for query in task.queries], task.left_out, task.is_contextual) == (["q1", "q2"], 3, False)
    assert [query.id for query in read_task(folder, "dev").queries] == ["q3"]
    with pytest.raises(InputError, match=r"neither qrels\.tsv nor qrels/train\.tsv found; .*: dev, test"):
        read_task(folder, "train")


def test_a_listing_beside_the_tasks_says_which_are_contextual(tmp_path: Path):
    for name in ("a", "b", "c"):
        write_task(tmp_path / name)
    listing = [{"task": "a", "kind": "passage"}, {"task": "b", "kind": "contextual"}]
    (tmp_path / "tasks.json").write_text(json.dumps(listing))
    assert [read_task(tmp_path / name).is_contextual for name in ("a", "b", "c")] == [False, True, True]
    (tmp_path / "tasks.json").write_text('{"task": "a"}')
    with pytest.raises(InputError, match=r"tasks\.json: not a list of tasks"):
        read_task(tmp_path / "a")


@pytest.mark.parametrize(
    "change",
    [
        lambda corpus, queries, qrels: corpus[0].update(text="other"),
        lambda corpus, queries, qrels: corpus[0].update(title="other"),
        lambda corpus, queries, qrels: corpus[2].update(chunk_idx=7),
        lambda corpus, queries, qrels: queries[0].update(text="other"),
        lambda corpus, queries, qrels: qrels.__setitem__(1, qrels[1].replace("\t2", "\t1")),
    ],
)
def test_the_digest_follows_everything_that_a_score_depends_on(tmp_path: Path, change: Callable[..., Any]):
    before = read_task(write_task(tmp_path / "a")).digest
    assert read_task(write_task(tmp_path / "b", packed=False)).digest == before
    corpus, queries, qrels = corpus_rows(), query_rows(), judged_lines()
    change(corpus, queries, qrels)
    assert read_task(write_task(tmp_path / "c", corpus, queries, qrels)).digest != before


def test_folders_are_tasks_or_hold_tasks(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory):
    for name in ("a", "b"):
        write_task(tmp_path / "many" / name)
    single = write_task(tmp_path / "single")
    many = tmp_path / "many"
    assert [path.name for path in task_folders([many, single])] == ["a", "b", "single"]
    assert [path.name for path in task_folders([many], ["b", "a", "b"])] == ["b", "a"]
    assert [path.name for path in task_folders([many, many / "a"])] == ["a", "b"]
    with pytest.raises(InputError, match=r"no task 'c' in .*; there are: a, b"):
        task_folders([many], ["c"])
    with pytest.raises(InputError, match="a second task named a; the other is"):
        task_folders([many, write_task(tmp_path / "a")])
    with pytest.raises(InputError, match="no such folder"):
        task_folders([tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"no corpus\.jsonl"):
        task_folders([many / "a", tmp_path_factory.mktemp("empty")])


@pytest.mark.parametrize("name", ["corpus.jsonl.gz", "queries.jsonl.gz", "qrels.tsv"])
def test_a_missing_file_is_named(tmp_path: Path, name: str):
    folder = write_task(tmp_path / "t")
    (folder / name).unlink()
    with pytest.raises(InputError, match=name.partition(".")[0]) as caught:
        read_task(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


CORPUS_FAULTS = {
    "not JSON": ("{", r"corpus\.jsonl:2: not JSON"),
    "no object": ("[]", r"corpus\.jsonl:2: a list, not an object"),
    "no id": ('{"text": "x"}', r"corpus\.jsonl:2: _id must be a string that is not empty, found None"),
    "empty id": ('{"_id": "", "text": "x"}', r"corpus\.jsonl:2: _id must be"),
    "no text": ('{"_id": "x"}', r"corpus\.jsonl:2: text must be a string, found None"),
    "number for text": ('{"_id": "x", "text": 5}', r"corpus\.jsonl:2: text must be a string, found 5"),
    "number for title": ('{"_id": "x", "text": "", "title": 5}', r"corpus\.jsonl:2: title must be a string, found int"),
    "same id": ('{"_id": "ships#0", "text": "x"}', r"corpus\.jsonl:2: duplicate passage 'ships#0'"),
    "half a piece": ('{"_id": "x", "text": "", "doc_id": "d"}', r"corpus\.jsonl:2: doc_id and chunk_idx belong togeth"),
    "negative piece": (
        '{"_id": "x", "text": "", "doc_id": "d", "chunk_idx": -1}',
        r"corpus\.jsonl:2: chunk_idx must be a whole number from 0, found -1",
    ),
    "same piece": (
        '{"_id": "x", "text": "", "doc_id": "ships", "chunk_idx": 0}',
        r"passages 'ships#0' and 'x' are both piece 0 of document 'ships'",
    ),
    "some pieces": ('{"_id": "x", "text": ""}', r"corpus\.jsonl: 1 of 2 passages have a doc_id"),
}


@pytest.mark.parametrize("fault", CORPUS_FAULTS)
def test_a_faulty_line_of_the_corpus_is_named(tmp_path: Path, fault: str):
    line, message = CORPUS_FAULTS[fault]
    folder = write_task(tmp_path / "t", packed=False)
    write_lines(folder / "corpus.jsonl", [json.dumps(corpus_rows()[0]), line])
    with pytest.raises(InputError, match=message) as caught:
        read_task(folder)
    assert "\n" not in str(caught.value)


QRELS_FAULTS = {
    "unknown passage": ("q1\tnowhere\t1", r"qrels\.tsv:2: judges passage 'nowhere', which is not in the corpus"),
    "unknown query": ("q9\tships#0\t1", r"qrels\.tsv:2: judges query 'q9', which is not in the queries"),
    "two fields": ("q1\tships#0", r"qrels\.tsv:2: found 'q1\\tships#0', expected query-id, corpus-id and a whole numb"),
    "word for grade": ("q1\tships#0\tgood", r"qrels\.tsv:2: found .*, expected"),
    "spaces for tabs": ("q1 ships#0 1", r"qrels\.tsv:2: found 'q1 ships#0 1', expected"),
}


@pytest.mark.parametrize("fault", QRELS_FAULTS)
def test_a_faulty_line_of_the_qrels_is_named(tmp_path: Path, fault: str):
    line, message = QRELS_FAULTS[fault]
    header, *rest = judged_lines()
    with pytest.raises(InputError, match=message):
        read_task(write_task(tmp_path / "t", qrels=[header, line, *rest]))


def test_a_pair_is_judged_once(tmp_path: Path):
    with pytest.raises(InputError, match=r"qrels\.tsv:11: 'q1' and 'ships#2' are judged already"):
        read_task(write_task(tmp_path / "t", qrels=[*judged_lines(), "q1\tships#2\t0"]))


def test_a_header_may_be_missing_and_blank_lines_are_passed_over(tmp_path: Path):
    _, *lines = judged_lines()
    folder = write_task(tmp_path / "t", qrels=[*lines[:2], "", *lines[2:], ""])
    assert sum(map(len, read_task(folder).qrels.values())) == 9


@pytest.mark.parametrize("grades", [{}, {"bread#2": 0}])
def test_a_query_that_nothing_answers_is_named(tmp_path: Path, grades: dict[str, int]):
    judgements = {name: found for name, (_, found) in QUERIES.items()} | {"q3": grades}
    folder = write_task(tmp_path / "t", qrels=judged_lines(judgements))
    with pytest.raises(InputError, match=r"no passage with a grade above 0 for query 'q3'; judge it, remove it from"):
        read_task(folder)


@pytest.mark.parametrize(("name", "noun"), [("corpus", "passage"), ("queries", "query")])
def test_an_empty_file_is_named(tmp_path: Path, name: str, noun: str):
    folder = write_task(tmp_path / "t")
    write_lines(folder / f"{name}.jsonl.gz", ["", ""])
    with pytest.raises(InputError, match=rf"{name}\.jsonl\.gz: empty: no {noun} in it, at least 1 is needed"):
        read_task(folder)


def test_a_query_that_comes_twice_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"queries\.jsonl\.gz:6: duplicate query 'q1'"):
        read_task(write_task(tmp_path / "t", queries=[*query_rows(), query_rows()[0]]))


@pytest.mark.parametrize(
    "content", [b"not packed", gzip.compress(b"{}" * 99)[:20], gzip.compress(b'{"_id": "x", "text": "\xff"}\n')]
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes):
    folder = write_task(tmp_path / "t")
    (folder / "corpus.jsonl.gz").write_bytes(content)
    with pytest.raises(InputError, match=r"corpus\.jsonl\.gz: cannot be read .*; fetch or write it again"):
        read_task(folder)
