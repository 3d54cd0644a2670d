"""`pplx-search` as its user runs it, on a fake model."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeSession, fake_embedder
from pplx_search import cli
from pplx_search.cli import watch
from pplx_search.cli.open import command_for
from pplx_search.cli.progress import described, duration
from pplx_search.indexing import Progress
from pplx_search.snippets import snippet

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> FakeSession:
    fake = FakeSession()
    monkeypatch.setattr("pplx_edge.load", lambda *_, **__: fake_embedder(fake))
    return fake


@pytest.fixture
def run(tmp_path: Path, session: FakeSession, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*argv: object) -> tuple[int, str, str]:
        try:
            status = cli.main(["--home", str(tmp_path / "home"), *map(str, argv)])
        except SystemExit as error:
            status = int(error.code or 0)
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "fox.md").write_text("# Animals\n\nThe quick brown fox.\n\n## Dogs\n\nThe lazy dog sleeps on.\n")
    (folder / "sub" / "lease.txt").write_text("The lease ends on 31 May.\nNotice is three months.\n")
    (folder / "photo.png").write_bytes(b"\x89PNG")
    monkeypatch.chdir(tmp_path)
    return folder


def test_add_then_search_prints_place_heading_and_passage(run: Run, folder: Path) -> None:
    status, out, err = run("add", folder)
    assert (status, out) == (0, "")
    assert err.splitlines()[0] == "pplx-search: 2 indexed, 1 skipped"
    status, out, _ = run("search", "lazy dog", "--explain")
    assert status == 0
    first = out.splitlines()
    assert first[0].startswith(f" 1  files{os.sep}fox.md:line ")
    assert "Animals" in first[1]
    assert "The lazy dog sleeps on." in out
    assert "ranks: " in out


def test_json_has_a_schema_and_all_places(run: Run, folder: Path) -> None:
    run("add", folder)
    _, out, _ = run("search", "when does the lease end", "-k", "1", "--json")
    hit = json.loads(out)
    assert hit["schema"] == 1
    assert hit["path"] == str(folder / "sub" / "lease.txt")
    assert (hit["line"], hit["page"], hit["collection"], hit["kind"]) == (1, None, "default", "text")
    assert hit["text"].startswith("The lease ends")
    assert hit["stop"] - hit["start"] == len(hit["text"])


def test_filters_limit_what_is_found(run: Run, folder: Path) -> None:
    run("add", folder)
    assert run("search", "the", "--in", folder / "sub")[1].count("lease.txt") == 1
    assert "lease" not in run("search", "the", "--type", "markdown")[1]
    assert run("search", "the", "--since", "2999-01-01") == (1, "", "")
    assert run("search", "the", "--until", "1999-01-01")[0] == 1
    assert run("search", "the", "-c", "nowhere")[0] in (1, 2)


def test_words_alone_need_no_model(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("add", folder)

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the model was opened")

    monkeypatch.setattr("pplx_edge.load", fail)
    assert "lease.txt" in run("search", "lease", "--words-only")[1]
    assert run("search", "zebra", "--words-only") == (1, "", "")


def test_status_says_what_is_not_indexed_and_why(run: Run, folder: Path) -> None:
    (folder / "cut.pdf").write_bytes(b"%PDF-1.7")
    run("add", folder)
    status, out, _ = run("status", "--files")
    assert status == 0
    assert "2 of 3 indexed, 0 pending, 1 failed" in out
    assert "failed    " in out
    assert "cut.pdf" in out
    assert "photo.png" in out
    lines = [json.loads(line) for line in run("status", "--files", "--json")[1].splitlines()]
    assert (lines[0]["schema"], lines[0]["indexed"], lines[0]["failed"]) == (1, 2, 1)
    assert {line["state"] for line in lines[1:]} == {"failed", "skipped"}


def test_update_check_get_and_rm(run: Run, folder: Path) -> None:
    run("add", folder)
    assert run("update")[2] == "pplx-search: 2 unchanged, 1 skipped\npplx-search: why: pplx-search status --files\n"
    (folder / "sub" / "lease.txt").write_text("A zebra.\n")
    assert "1 indexed" in run("update")[2]
    assert run("check") == (0, "", "pplx-search: sound\n")
    number = json.loads(run("search", "zebra", "--json", "-k", "1")[1])["document"]
    assert run("get", number)[1] == "A zebra.\n"
    number = json.loads(run("search", "lazy", "--json", "-k", "1")[1])["document"]
    assert run("get", f"{number}:3:1")[1] == "The quick brown fox.\n"
    assert run("rm", folder / "sub")[0] == 0
    assert run("search", "zebra", "--words-only")[0] == 1
    assert "nothing of it is in the index" in run("rm", "elsewhere")[2]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("search", "x"), "there is no index; begin with: pplx-search add FOLDER"),
        (("status",), "index"),
        (("add", "nowhere"), "nowhere: no such file or folder"),
        (("search", " "), "the question is empty"),
        (("rm",), "say either which paths or which collection"),
        (("get", "x"), "'x' is not ID, ID:LINE or ID:LINE:COUNT"),
        (("search", "x", "--since", "soon"), "'soon' is not a date; write 2026-01-31"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run: Run, folder: Path, argv: tuple[str, ...], message: str) -> None:
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err


def test_another_model_is_a_decision(run: Run, folder: Path) -> None:
    run("add", folder)
    status, _, err = run("add", folder, "--model", "other")
    assert status == 2
    assert "pplx-search reembed --model other" in err


def test_reembed_serves_at_the_end(run: Run, folder: Path, session: FakeSession) -> None:
    run("add", folder)
    session.backend = "other"
    status, _, err = run("reembed", "--model", "other")
    assert status == 0
    assert "other serves now" in err
    assert "lease.txt" in run("search", "when does the lease end")[1]
    assert "are those of other already" in run("reembed", "--model", "other")[2]


def test_a_second_writer_is_refused_and_told_who_writes(run: Run, folder: Path, tmp_path: Path) -> None:
    run("add", folder)
    from pplx_search.store import Store

    with Store.open(tmp_path / "home", write=True):
        status, _, err = run("update")
        assert status == 2
        assert str(os.getpid()) in err
        assert run("search", "lease", "--words-only")[0] == 0


def test_every_command_has_help_with_an_example() -> None:
    for command in cli.COMMANDS:
        done = subprocess.run(
            [sys.executable, "-c", f"from pplx_search.cli import main; main(['{command}', '--help'])"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"pplx-search {command}" in done.stdout
        assert "example:" in done.stdout


def test_files_open_in_the_system_s_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert command_for(Path("/a/b.pdf"), reveal=False) == ["open", "/a/b.pdf"]
    assert command_for(Path("/a/b.pdf"), reveal=True) == ["open", "-R", "/a/b.pdf"]
    monkeypatch.setattr("sys.platform", "linux")
    assert command_for(Path("/a/b.pdf"), reveal=True) == ["xdg-open", "/a"]


def test_what_could_run_is_revealed_not_opened(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub" / "lease.txt").chmod(0o755)
    run("add", folder)
    number = json.loads(run("search", "lease", "--json", "-k", "1")[1])["document"]
    asked: list[list[str]] = []
    monkeypatch.setattr("pplx_search.cli.open.subprocess.run", lambda command, **_: asked.append(command))
    assert run("open", number)[0] == 0
    assert asked == [command_for(folder / "sub" / "lease.txt", reveal=True)]


def test_watching_looks_at_the_start_and_when_files_change(folder: Path) -> None:
    stop = threading.Event()
    reasons = watch.reasons_to_look([str(folder)], stop)
    assert next(reasons) == "start"
    threading.Timer(0.5, (folder / "new.txt").write_text, ["new"]).start()
    assert next(reasons) == "files"
    stop.set()
    assert list(reasons) == []


def test_progress_is_told_in_words() -> None:
    assert described(Progress(10, 100, 2, 20, 50), 1.0) == "2 of 10 files"
    assert described(Progress(10, 100, 2, 20, 50), 10.0) == "2 of 10 files, 5 tokens/s, about 40 s left"
    assert described(Progress(10, 100, 10, 100, 50), 10.0) == "10 of 10 files, 5 tokens/s"
    assert [duration(s) for s in (0.2, 59, 90, 7500)] == ["1 s", "59 s", "2 min", "2 h 5 min"]


def test_snippets_show_the_words_of_the_question() -> None:
    text = "start " * 60 + "the lease ends on 31 May and notice is three months " + "tail " * 60
    shown = snippet(text, "When does the lease end?", 80)
    assert "the lease ends on 31 May" in shown
    assert len(shown) <= 82
    assert shown.startswith("…")
    assert shown.endswith("…")
    assert snippet("short\n text", "x", 80) == "short text"
    assert len(snippet("a" * 500, "", 50)) <= 52


def test_export_writes_vectors_places_and_texts(run: Run, folder: Path, tmp_path: Path) -> None:
    run("add", folder)
    status, out, err = run("export", tmp_path / "all.npz")
    assert (status, out.strip()) == (0, str(tmp_path / "all.npz"))
    with np.load(tmp_path / "all.npz") as found:
        assert found["vectors"].dtype == np.int8
        assert len(found["vectors"]) == len(found["path"]) == len(found["text"])
        assert f"{len(found['path']):,} passages" in err
        (row,) = np.flatnonzero([path.endswith("lease.txt") for path in found["path"]])
        assert found["text"][row].startswith("The lease ends")
        assert (found["line"][row], found["page"][row], found["kind"][row]) == (1, -1, "text")
        model = fake_embedder()
        text = "The lease ends on 31 May.\nNotice is three months."
        np.testing.assert_array_equal(found["vectors"][row], model.encode([text])[0])
    assert "exists already" in run("export", tmp_path / "all.npz")[2]
    assert run("export", tmp_path / "all.npz", "--force", "--no-text", "--in", folder / "sub")[0] == 0
    with np.load(tmp_path / "all.npz") as found:
        assert "text" not in found
        assert len(found["vectors"]) == 1
    assert "export writes .npz and .parquet" in run("export", tmp_path / "all.csv")[2]


def test_export_to_parquet_has_the_same_rows(run: Run, folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run("add", folder)
    run("export", tmp_path / "all.npz")
    assert run("export", tmp_path / "all.parquet")[0] == 0
    table = parquet.read_table(tmp_path / "all.parquet")
    with np.load(tmp_path / "all.npz") as found:
        np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.int8), found["vectors"])
        assert table["text"].to_pylist() == found["text"].tolist()
        assert [-1 if page is None else page for page in table["page"].to_pylist()] == found["page"].tolist()
