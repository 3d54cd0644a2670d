"""`pplx-edge bench search folder`: the folders that it makes, the ways to find, and a tiny run of every step."""

import contextlib
import json
import mailbox
import os
from pathlib import Path
from typing import Any

import pytest
from beir_folders import judged_lines, write_task
from fakes import fake_embedder

from pplx_bench.retrieval.beir import RetrievalTask, TaskPassage, TaskQuery
from pplx_bench.search import corpora
from pplx_bench.search.finders import finders
from pplx_bench.search.folder import STEPS
from pplx_bench.search.report import folder_table
from pplx_cli import main
from pplx_edge import StreamOptions
from pplx_edge.errors import InputError
from pplx_search.indexer import Indexer
from pplx_search.settings import settings_of
from pplx_search.store import Store

OPTIONS = StreamOptions(chunk_tokens=32, window=128, margin=16)
SUBJECTS = ("kiwi", "heron", "granite", "violin", "glacier", "lantern", "saffron", "orbit")


def task(name: str, n_passages: int) -> RetrievalTask:
    corpus = tuple(
        TaskPassage(f"p{i}", f"Number {i} of {name} tells of the {SUBJECTS[i % 8]} and of nothing else.", "")
        for i in range(n_passages)
    )
    queries = tuple(
        TaskQuery(f"q{i}", f"which number of {name} tells of the {SUBJECTS[i]}?") for i in range(n_passages)
    )
    return RetrievalTask(name, corpus, queries, {f"q{i}": {f"p{i}": 1} for i in range(n_passages)})


def test_small_files_hold_different_passages_of_each_task_in_turn(tmp_path: Path):
    tasks = [task("one", 6), task("two", 2), task("one", 6)]  # the last has nothing new
    files = corpora.small_files(tasks, tmp_path, 8)
    assert [file.task for file in files[:4]] == ["one", "two", "one", "two"]
    assert [file.path.suffix for file in files[:3]] == [".md", ".txt", ".html"]
    assert len({file.path.read_text(encoding="utf-8") for file in files}) == 8
    assert all(file.passage.text in file.path.read_text(encoding="utf-8") for file in files)
    with pytest.raises(InputError, match=r"--files 9: .* 8 distinct passages"):
        corpora.small_files(tasks, tmp_path / "more", 9)


def test_large_files_are_as_large_as_asked_and_say_nothing_twice(tmp_path: Path):
    texts = [f"passage {i} " * 9 for i in range(7)]
    corpora.large_text(corpora.without_end(texts), tmp_path / "a" / "large.txt", 5000)
    paragraphs = (tmp_path / "a" / "large.txt").read_text(encoding="utf-8").strip().split("\n\n")
    assert 5000 <= sum(len(paragraph) + 2 for paragraph in paragraphs) < 5500
    assert len(set(paragraphs)) == len(paragraphs)
    corpora.large_mailbox(corpora.without_end(texts), tmp_path / "mail.mbox", 2000)
    with contextlib.closing(mailbox.mbox(tmp_path / "mail.mbox")) as box:
        messages = list(box)
    assert len({message.get_payload() for message in messages}) == len(messages) > 15
    corpora.large_table(corpora.without_end(texts), tmp_path / "table.csv", 2000)
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").startswith("number,text\n0,passage 0 ")


def test_each_way_finds_the_file_that_has_the_words(tmp_path: Path):
    files = corpora.small_files([task("one", 8)], tmp_path / "files", 8)
    model = fake_embedder()
    with Store.open(tmp_path / "home", write=True) as store:
        store.collections.add("default")
        store.collections.add_root("default", os.fsencode(tmp_path / "files"))
        Indexer(store, model, OPTIONS, settings_of("fake", model, OPTIONS)).update()
        ways = finders(tmp_path / "files", [file.path for file in files], store, model, tmp_path)
        found = {name: find("Where is the GRANITE?") for name, find in ways.items()}
    assert set(found) == {"grep -ri", "FTS5 alone", "pplx-search, words", "pplx-search, dense", "pplx-search"}
    assert all(files[2].path in paths for paths in found.values())
    for name in ("grep -ri", "FTS5 alone", "pplx-search, words"):  # the vectors are those of a fake
        assert found[name][0] == files[2].path


def test_the_table_says_which_bounds_are_kept():
    about = {"unit": "%", "at_least": True, "bound": 90.0}
    figures = [about | {"what": "a", "value": 91.23}, about | {"what": "b", "value": 89.0}]
    figures += [about | {"what": "c", "value": 2000.0, "bound": None, "unit": "tokens/s"}]
    figures += [about | {"what": "d", "value": 0.7, "bound": 0.6, "unit": "s", "at_least": False}]
    figures += [about | {"what": "grep", "value": 8.0, "first": 0.5, "among": 1.0, "questions": 4}]
    assert folder_table(figures).splitlines() == [
        "|  | figure | bound | kept |",
        "| --- | ---: | ---: | ---: |",
        "| a | 91.23 % | ≥ 90 % | yes |",
        "| b | 89.00 % | ≥ 90 % | no |",
        "| c | 2,000 tokens/s |  |  |",
        "| d | 0.70 s | ≤ 0.6 s | no |",
        "",
        "| 4 questions | ms a question | right file first | in the first 10 |",
        "| --- | ---: | ---: | ---: |",
        "| grep | 8.0 | 50.0 % | 100.0 % |",
    ]


def run(tmp_path: Path, *options: str) -> dict[str, dict[str, Any]]:
    """The figures of a run over a small task, by what they are of."""
    passages = [
        {"_id": f"p{i}", "text": f"Passage {i} tells of the {SUBJECTS[i % 8]} and of number {i * i}."}
        for i in range(30)
    ]
    questions = [{"_id": f"q{i}", "text": f"what tells of number {i * i}?"} for i in range(30)]
    write_task(
        tmp_path / "data" / "facts", passages, questions, judged_lines({f"q{i}": {f"p{i}": 1} for i in range(30)})
    )
    output = ["--json", str(tmp_path / "folder.jsonl"), "--work", str(tmp_path / "work"), "--threads", "1"]
    assert main(["bench", "search", "folder", str(tmp_path / "data"), *output, *options]) == 0
    assert list((tmp_path / "work").iterdir()) == []
    lines = (json.loads(line) for line in (tmp_path / "folder.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["what"]: line for line in lines}


def test_a_tiny_run_of_small_files(tmp_path: Path, nano_dir: Path, capsys: pytest.CaptureFixture[str]):
    figures = run(tmp_path, "--steps", "ingest", "--files", "24", "--asked", "5")
    told = figures["24 small files: model busy"]["told"]
    assert (told["indexed"] + told["known"], told["failed"], told["chunks"]) == (24, 0, 24)
    assert 0 < told["computed"] <= told["span"] <= told["seconds"]
    assert figures["24 small files: peak RSS"]["value"] > 50
    assert figures["24 small files: second run"]["seconds"]
    assert "| pplx-search, dense |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_tiny_run_of_the_other_steps(tmp_path: Path, nano_dir: Path):
    sizes = ["--rescan", "30", "--large-mb", "0.02", "--stop-after", "0.1", "--start-chunks", "40", "--starts", "1"]
    figures = run(tmp_path, "--steps", "rescan,large,start,size", *sizes, "--size-mb", "0.001")
    assert {line["step"] for line in figures.values()} == {*STEPS} - {"ingest"}
    assert figures["30 unchanged files: pplx-search update"]["seconds"]
    assert figures["a text of 0.02 MB: peak RSS"]["value"] > 50
    assert figures["40 chunks: pplx-search search, p50"]["value"] > 0.1
    assert figures["  whole"]["value"] > figures["  opening the model"]["value"] > 0
