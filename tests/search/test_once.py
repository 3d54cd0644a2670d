"""`pplx-search once`: the hits of an index that is made for one question and deleted, on a fake model."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeSession, fake_embedder

from pplx_search import program

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with temporary directories below `tmp_path / "temporary"` and its index in `tmp_path / "home"`."""
    monkeypatch.setattr("pplx_edge.load", lambda *_, **__: fake_embedder(FakeSession()))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))

    def call(*argv: object) -> tuple[int, str, str]:
        status = program.main(["--home", str(tmp_path / "home"), *map(str, argv)])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "fox.md").write_text("# Animals\n\nThe quick brown fox.\n\n## Dogs\n\nThe lazy dog sleeps on.\n")
    (folder / "lease.txt").write_text("The lease ends on 31 May.\nNotice is three months.\n")
    return folder


def test_hits_are_those_of_add_and_search(run: Run, folder: Path):
    _, once, _ = run("once", "when does the lease end", folder, "--json")
    assert run("add", "--quiet", folder)[0] == 0
    _, indexed, _ = run("search", "when does the lease end", "--json")
    assert once == indexed
    assert json.loads(once.splitlines()[0])["path"] == str(folder / "lease.txt")


def test_nothing_is_left_behind(run: Run, folder: Path, tmp_path: Path):
    assert run("once", "lazy dog", folder)[0] == 0
    assert list((tmp_path / "temporary").iterdir()) == []
    assert not (tmp_path / "home").exists()


def test_rules_and_filters_apply(run: Run, folder: Path):
    _, out, _ = run("once", "dog", folder, "--include", "*.txt", "--json")
    assert {json.loads(line)["path"] for line in out.splitlines()} <= {str(folder / "lease.txt")}
    _, out, _ = run("once", "dog", folder, "--type", "markdown", "--json", "-k", "1")
    assert [json.loads(line)["path"] for line in out.splitlines()] == [str(folder / "fox.md")]


def test_it_has_no_collections(run: Run, folder: Path):
    assert "unknown option -c" in run("once", "dog", folder, "-c", "default")[2]


def test_a_file_that_cannot_be_read_is_named(run: Run, folder: Path):
    (folder / "broken.docx").write_bytes(b"PK\x03\x04 not a document")
    status, _, err = run("once", "lazy dog", folder)
    assert status == 0
    assert "broken.docx: " in err


def test_a_missing_path_is_an_error_and_nothing_is_left(run: Run, tmp_path: Path):
    status, out, err = run("once", "anything", tmp_path / "nowhere")
    assert (status, out) == (2, "")
    assert err == f"pplx-search: error: {tmp_path / 'nowhere'}: no such file or folder\n"
    assert list((tmp_path / "temporary").iterdir()) == []
