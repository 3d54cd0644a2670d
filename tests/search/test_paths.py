"""Paths as they are typed and as folders list them, which differ on the file system of a Mac."""

import os
from pathlib import Path

import pytest

from pplx_search.options import absolute, as_listed


def test_a_path_gets_the_names_that_its_folders_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A hard link that is not listed plays a name in another case or Unicode form."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "caf\u00e9.txt").write_text("x")
    (tmp_path / "sub" / "other.txt").write_text("x")
    typed = tmp_path / "sub" / "CAFE\u0301.txt"
    os.link(tmp_path / "sub" / "caf\u00e9.txt", typed)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [name for name in listdir(path) if name != typed.name])
    assert as_listed(typed) == tmp_path / "sub" / "caf\u00e9.txt"
    assert absolute(str(typed)) == os.fsencode(tmp_path / "sub" / "caf\u00e9.txt")


def test_other_paths_stay_as_they_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    for path in (tmp_path / "here", tmp_path / "link", tmp_path / "not" / "there", tmp_path / "Here"):
        assert as_listed(path) == path
    monkeypatch.setattr(os, "listdir", lambda _: (_ for _ in ()).throw(PermissionError()))
    assert as_listed(tmp_path / "here") == tmp_path / "here"
