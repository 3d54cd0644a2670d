"""`pplx-search` as its user runs it, on a fake model."""

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeSession, fake_embedder
from hypothesis import given
from hypothesis import strategies as st

import pplx_cli
from pplx_kit.progress import Progress, described, duration
from pplx_search import program
from pplx_search.commands import watch
from pplx_search.commands.open import command_for
from pplx_search.console import shown_path
from pplx_search.indexer import Report
from pplx_search.ingest.walk import MissingRoot
from pplx_search.progress import Bar, say_summary
from pplx_search.query.snippets import snippet

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
            status = program.main(["--home", str(tmp_path / "home"), *map(str, argv)])
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
    assert err.startswith("pplx-search: 2 indexed, 1 skipped, in ")
    status, out, _ = run("search", "lazy dog", "--explain")
    assert status == 0
    first = out.splitlines()
    assert first[0].startswith(f" 1  files{os.sep}fox.md:1 ")
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


def test_an_unknown_collection_or_type_is_an_error_that_lists_the_known_ones(run: Run, folder: Path) -> None:
    run("add", folder)
    assert run("search", "the", "-c", "default")[0] == 0
    unknown = (2, "", "pplx-search: error: no collection 'nowhere'; there are: default\n")
    assert run("search", "the", "-c", "nowhere") == unknown
    assert run("export", folder / "x.npz", "-c", "nowhere") == unknown
    status, _, err = run("search", "the", "--type", "word")
    assert status == 2
    assert "'word'" in err
    assert "'docx'" in err


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
    lines = out.splitlines()
    assert lines[:3] == [
        "files        2 of 3 indexed",
        "failed       1 damaged: the file is truncated, or not of the type that its name suggests",
        "skipped      1 no reader for .png files",
    ]
    assert f"failed       files{os.sep}cut.pdf  the PDF is incomplete or damaged and cannot be opened" in lines
    assert f"skipped      files{os.sep}photo.png  no reader for .png files" in lines
    lines = [json.loads(line) for line in run("status", "--files", "--json")[1].splitlines()]
    assert (lines[0]["schema"], lines[0]["indexed"], lines[0]["failed"]) == (1, 2, 1)
    assert {line["state"] for line in lines[1:]} == {"failed", "skipped"}


def test_update_check_get_and_rm(run: Run, folder: Path) -> None:
    run("add", folder)
    said = run("update")[2]
    assert re.fullmatch(
        r"pplx-search: 2 unchanged, 1 skipped, in \d\.\d s; for details: pplx-search status --files\n", said
    )
    (folder / "sub" / "lease.txt").write_text("A zebra.\n")
    assert "1 indexed" in run("update")[2]
    assert run("check") == (0, "", "pplx-search: sound\n")
    number = json.loads(run("search", "zebra", "--json", "-k", "1")[1])["document"]
    assert run("get", number)[1] == "A zebra.\n"
    number = json.loads(run("search", "lazy", "--json", "-k", "1")[1])["document"]
    assert run("get", f"{number}:3:1")[1] == "The quick brown fox.\n"
    status, _, said = run("rm", folder / "sub")
    assert status == 0
    keep_out = f"pplx-search add {folder} --exclude '/sub'"
    again = f"the next update will add files{os.sep}sub again"
    assert said.startswith(f"pplx-search: {again}; to exclude it, run: {keep_out}")
    assert run("search", "zebra", "--words-only")[0] == 1
    assert "not in the index" in run("rm", "elsewhere")[2]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("search", "x"), "home; start with: pplx-search add FOLDER"),
        (("status",), "index"),
        (("add", "nowhere"), "nowhere: no such file or folder"),
        (("search", "a\udc80"), "found the byte 0x80 at character 2, which is not valid UTF-8; type the query again"),
        (("search", "a", "\ud800"), "found the lone surrogate U+D800 at character 1, which is not valid UTF-8"),
        (("once", "\udc80", "."), "found the byte 0x80 at character 1, which is not valid UTF-8"),
        (("search", " "), "the query is empty"),
        (("rm",), "give either paths or --collection, not both"),
        (("get", "x"), "expected ID, ID:LINE or ID:LINE:COUNT; got 'x'"),
        (("search", "x", "--since", "soon"), "expected a date such as 2026-01-31; got 'soon'"),
        (("search", "x", "--threads", "0"), "'0' is not a whole number above 0 (see: pplx-search search --help)"),
        (("search", "x", "--foo"), "unknown option --foo (see: pplx-search search --help)"),
        (("status", "now"), "unexpected argument 'now'; put quotes around a value that contains spaces"),
        (("serch", "x"), "unknown command 'serch'; did you mean search? (see: pplx-search --help)"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run: Run, folder: Path, argv: tuple[str, ...], message: str) -> None:
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("pplx-search: error: ")
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
    assert "the index now uses other" in err
    assert "lease.txt" in run("search", "when does the lease end")[1]
    assert "already uses other" in run("reembed", "--model", "other")[2]


def test_a_second_writer_is_refused_and_told_who_writes(run: Run, folder: Path, tmp_path: Path) -> None:
    run("add", folder)
    from pplx_search.store import Store

    with Store.open(tmp_path / "home", write=True):
        status, _, err = run("update")
        assert status == 2
        assert str(os.getpid()) in err
        assert run("search", "lease", "--words-only")[0] == 0


@pytest.mark.parametrize(("name", "main"), [("pplx-edge", pplx_cli.main), ("pplx-search", program.main)])
def test_help_lists_every_command_once_in_a_group(name: str, main, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    groups = {"pplx-edge": pplx_cli.GROUPS, "pplx-search": program.GROUPS}[name]
    listed = re.findall(r"^(?:(\w+):$|  (\w+)  +\w)", out.partition("\noptions:")[0], re.MULTILINE)
    assert [heading or command for heading, command in listed] == [
        each for heading, commands in groups.items() for each in (heading, *commands)
    ]
    assert out.startswith(f"usage: {name} [-h] [--version]")
    assert max(map(len, out.splitlines())) <= 100


def test_every_command_has_help_with_an_example() -> None:
    for command in program.COMMANDS:
        done = subprocess.run(
            [sys.executable, "-c", f"from pplx_search.program import main; main(['{command}', '--help'])"],
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
    monkeypatch.setattr("pplx_search.commands.open.subprocess.run", lambda command, **_: asked.append(command))
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


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_bar_is_drawn_on_a_terminal_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Bar() as bar:
        assert "looking for files" in terminal.getvalue()
        bar.show(Progress(10, 100, 0, 0, 0))
        bar.show(Progress(10, 100, 5, 50, 9))  # too soon to be drawn
        bar._drawn = -1.0
        bar.show(Progress(10, 100, 5, 60, 9))
    drawn = [" ".join(line.split()) for line in terminal.getvalue().split("\r") if line.strip()]
    assert drawn[0] == "looking for files"
    assert drawn[1].startswith("0% ")
    assert drawn[-1].startswith("60% ")
    assert drawn[-1].endswith(" 5 of 10 files")
    assert terminal.getvalue().endswith("\r")


def test_a_quiet_bar_and_one_that_nobody_looks_at_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, quiet in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        with Bar(quiet) as bar:
            bar.show(Progress(10, 100, 5, 60, 9))
        assert stream.getvalue() == ""


def test_progress_counts_what_is_embedded_of_a_file(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "book.txt").write_text("The quick brown fox jumps. " * 400)
    seen: list[Progress] = []
    monkeypatch.setattr(Bar, "show", lambda _, progress: seen.append(progress))
    run("add", folder)
    told = [progress.bytes for progress in seen]
    assert told == sorted(told)
    assert len({n for n in told if 1000 < n < 10_000}) > 3
    assert (seen[0].bytes, seen[-1].bytes) == (0, seen[-1].n_bytes)
    seen.clear()
    run("reembed", "--model", "nano")
    assert seen == []


def test_reembedding_has_progress_too(run: Run, folder: Path, session: FakeSession, monkeypatch) -> None:
    run("add", folder)
    seen: list[Progress] = []
    monkeypatch.setattr(Bar, "show", lambda _, progress: seen.append(progress))
    session.backend = "other"
    run("reembed", "--model", "other")
    assert seen[-1].n_files == 0
    assert 0.9 * seen[-1].n_bytes < seen[-1].bytes <= seen[-1].n_bytes  # blanks between chunks are in none
    assert described(seen[-1], Progress(0, 116, 0, 0, 0), 10.0).startswith("8 tokens/s")


def test_long_paths_lose_their_middle_and_those_at_home_begin_with_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert shown_path(b"/home/ann/a.txt") == "~/a.txt"
    assert shown_path(b"/home/anna/a.txt") == "/home/anna/a.txt"
    shown = shown_path(b"/srv/" + b"x" * 4000 + b"/end.txt")
    assert len(shown) == 160
    assert shown.startswith("/srv/xxx")
    assert "…" in shown
    assert shown.endswith("xxx/end.txt")


def test_folders_that_cannot_be_looked_into_are_told_and_not_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    missing = [MissingRoot(Path(f"/nowhere/{i}"), "Permission denied") for i in range(8)]
    say_summary(Report(missing=missing), 0.5, quiet=True)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "pplx-search: /nowhere/0: Permission denied; its files stay in the index"
    assert said[-1] == "pplx-search: and 3 more folders could not be read"
    assert len(said) == 6


def test_a_document_with_escapes_is_shown_safely_on_a_terminal(run: Run, folder: Path, monkeypatch) -> None:
    (folder / "escapes.md").write_text("A \x1b[31mred\x1b[0m zebra.\n\tTabs stay.\n")
    run("add", folder)
    number = json.loads(run("search", "zebra", "--json", "-k", "1", "--words-only")[1])["document"]
    assert run("get", number)[1] == "A \x1b[31mred\x1b[0m zebra.\n\tTabs stay.\n"
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    run("get", number)
    assert terminal.getvalue() == "A �[31mred�[0m zebra.\n\tTabs stay.\n"


def test_progress_is_told_in_words() -> None:
    start, now = Progress(10, 100, 0, 0, 0), Progress(10, 100, 2, 20, 50)
    assert described(now, start, 1.0) == "2 of 10 files"
    assert described(now, start, 4.0) == "2 of 10 files, 12 tokens/s"
    assert described(now, start, 10.0) == "2 of 10 files, 5 tokens/s, about 40 s left"
    assert described(Progress(10, 100, 4, 60, 150), now, 10.0) == "4 of 10 files, 10 tokens/s, about 10 s left"
    assert described(Progress(10, 100, 10, 100, 50), start, 10.0) == "10 of 10 files, 5 tokens/s"
    assert described(now, now, 100.0) == "2 of 10 files"
    assert [duration(s) for s in (0.2, 59, 90, 7500)] == ["0.2 s", "59 s", "2 min", "2 h 5 min"]


def test_snippets_show_the_words_of_the_question() -> None:
    text = "start " * 60 + "the lease ends on 31 May and notice is three months " + "tail " * 60
    shown = snippet(text, "When does the lease end?", 80)
    assert "the lease ends on 31 May" in shown
    assert len(shown) <= 82
    assert shown.startswith("…")
    assert shown.endswith("…")
    assert snippet("short\n text", "x", 80) == "short text"


def test_snippets_are_of_whole_words_and_begin_with_a_sentence() -> None:
    told = "He went away. " * 20 + "Then Gabriel Syme became a policeman. It was in the park. " + "She left. " * 30
    shown = snippet(told, "how did Syme become a policeman?", 70)
    assert shown == "…Then Gabriel Syme became a policeman. It was in the park. She left.…"
    plain = "how and where " * 20 + "Syme the policeman " + "when and who " * 20
    assert "policeman" in snippet(plain, "how did Syme become a policeman?", 60)


@given(text=st.text(alphabet="ab 深.\n", max_size=300), question=st.text(alphabet="ab 深", max_size=20))
def test_snippets_fit_and_are_part_of_the_passage(text: str, question: str) -> None:
    shown = snippet(text, question, 40)
    assert len(shown) <= 40
    assert shown.strip("…") in " ".join(text.split())
    assert shown or not text.strip()


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
    assert "already exists" in run("export", tmp_path / "all.npz")[2]
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
