"""What is found below folders and what is passed over, with git as the judge of what is ignored."""

import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pplx_edge.errors import InputError
from pplx_search.ingest.kinds import kind_of
from pplx_search.ingest.walk import FoundFile, MissingRoot, SkippedFile, WalkRules, _Walker, walk


def plant(base: Path, *names: str) -> Path:
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("text", encoding="utf-8")
    return base


def found(*roots: Path, **rules: Any) -> list[str]:
    """Names of the files found, relative to the first root."""
    each = walk(roots, WalkRules(**rules))
    return [os.path.relpath(item.path, roots[0]) for item in each if isinstance(item, FoundFile)]


def skipped(root: Path, **rules: Any) -> dict[str, str]:
    each = walk([root], WalkRules(**rules))
    return {os.path.relpath(item.path, root): item.reason for item in each if isinstance(item, SkippedFile)}


def test_files_are_found_in_the_order_of_names_with_what_a_rescan_needs(tmp_path: Path):
    plant(tmp_path, "b.md", "a/z.py", "a/b/c.txt", "c")
    assert found(tmp_path) == ["a/b/c.txt", "a/z.py", "b.md", "c"]
    item = next(item for item in walk([tmp_path]) if item.path.name == "b.md")
    info = (tmp_path / "b.md").stat()
    assert item == FoundFile(tmp_path / "b.md", 4, info.st_mtime_ns, info.st_dev, info.st_ino, "markdown")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.TXT", "text"),
        ("README", "text"),
        ("Makefile", "code"),
        ("x.tar.gz", None),
        ("report.PDF", "pdf"),
        ("a.unknown", "text"),
        (".profile", "text"),
        ("mail.eml", "mail"),
        ("table.csv", "csv"),
        ("log.jsonl", "jsonl"),
        ("photo.jpeg", None),
    ],
)
def test_the_kind_goes_by_the_name(name: str, kind: str | None):
    assert kind_of(name) == kind


def test_a_root_may_be_a_file_and_is_then_found_whatever_the_rules(tmp_path: Path):
    plant(tmp_path, ".hidden/.note", "image.png")
    assert found(tmp_path / ".hidden/.note") == ["."]
    assert [item.path.name for item in walk([tmp_path / ".hidden"], WalkRules(hidden=True))] == [".note"]
    (item,) = walk([tmp_path / "image.png"])
    assert item == SkippedFile(tmp_path / "image.png", "no reader for .png files")


def test_a_file_is_found_once_however_often_it_is_named(tmp_path: Path):
    plant(tmp_path, "a/b.txt", "a/c/d.txt")
    assert found(tmp_path, tmp_path / "a", tmp_path / "a/c/d.txt", tmp_path) == ["a/b.txt", "a/c/d.txt"]
    assert found(tmp_path / "a/c/d.txt", tmp_path, tmp_path) == [".", "../../b.txt"]


def test_a_root_that_is_missing_or_empty_is_told_apart_from_one_without_files(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    plant(tmp_path, "full/a.txt", "images/a.png")
    roots = [tmp_path / name for name in ("gone", "empty", "full", "images")]
    items = list(walk(roots))
    assert items[0] == MissingRoot(tmp_path / "gone", "No such file or directory")
    assert items[1] == MissingRoot(tmp_path / "empty", "empty folder; is the disk mounted?")
    assert [type(item) for item in items[2:]] == [FoundFile, SkippedFile]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_reported_as_unknown(tmp_path: Path):
    plant(tmp_path, "a.txt", "shut/b.txt")
    (tmp_path / "shut").chmod(0)
    try:
        assert MissingRoot(tmp_path / "shut", "Permission denied") in list(walk([tmp_path]))
    finally:
        (tmp_path / "shut").chmod(0o700)


def test_a_folder_that_fails_while_it_is_listed_is_reported_as_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plant(tmp_path, "a.txt", "lost/b.txt", "z.txt")
    scandir = os.scandir

    def failing(path: str) -> Any:
        if str(path).endswith("lost"):
            raise OSError(5, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    items = list(walk([tmp_path]))
    assert [type(item) for item in items] == [FoundFile, MissingRoot, FoundFile]
    assert items[1] == MissingRoot(tmp_path / "lost", "Input/output error")


def test_what_is_passed_over_has_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plant(tmp_path, ".git/config", ".hidden.txt", "node_modules/x/a.js", "Tool.app/notes.txt", "~$x.docx", "a.png")
    (tmp_path / "link").symlink_to("..")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        listener.bind("sock")
        assert skipped(tmp_path) == {
            ".git": "hidden",
            ".hidden.txt": "hidden",
            "Tool.app": "application or library bundle",
            "a.png": "no reader for .png files",
            "dangling": "symbolic link",
            "link": "symbolic link",
            "node_modules": "generated by tools",
            "pipe": "not a regular file",
            "sock": "not a regular file",
            "~$x.docx": "temporary Office file",
        }


def test_hidden_files_are_found_when_asked_for(tmp_path: Path):
    plant(tmp_path, ".notes/a.md", ".b.txt")
    assert found(tmp_path) == []
    assert found(tmp_path, hidden=True) == [".b.txt", ".notes/a.md"]


@pytest.mark.parametrize(("flags", "reason"), [(0x40000000, "stored only in the cloud"), (0x8000, "hidden")])
def test_flags_of_the_mac_are_heeded(tmp_path: Path, flags: int, reason: str, monkeypatch: pytest.MonkeyPatch):
    plant(tmp_path, "plain.txt", "flagged.txt", "folder/a.txt")
    scandir = os.scandir

    def flagged(path: str) -> Any:
        with scandir(path) as scan:
            entries = [_FlaggedEntry(entry, flags if entry.name != "plain.txt" else 0) for entry in scan]
        return _Scan(entries)

    monkeypatch.setattr(os, "scandir", flagged)
    assert skipped(tmp_path) == {"flagged.txt": reason, "folder": reason}
    assert found(tmp_path) == ["plain.txt"]


class _Scan(list[Any]):
    def __enter__(self) -> "_Scan":
        return self

    def __exit__(self, *_: object) -> None: ...


class _FlaggedEntry:
    def __init__(self, entry: "os.DirEntry[str]", flags: int):
        self.entry, self.flags, self.name = entry, flags, entry.name

    def is_symlink(self) -> bool:
        return False

    def stat(self, *, follow_symlinks: bool) -> Any:
        info = self.entry.stat(follow_symlinks=follow_symlinks)
        fields = {name: getattr(info, name) for name in dir(info) if name.startswith("st_")}
        return SimpleNamespace(**(fields | {"st_flags": self.flags}))


def test_a_file_in_the_cloud_is_not_read_when_it_is_named_either(tmp_path: Path):
    info = cast("os.stat_result", SimpleNamespace(st_mode=0o100644, st_flags=0x40000000))
    walker = _Walker(WalkRules(), [])
    assert walker.file("/x/a.txt", "a.txt", info) == SkippedFile(Path("/x/a.txt"), "stored only in the cloud")


def test_links_in_circles_end(tmp_path: Path):
    plant(tmp_path, "a/b/c.txt")
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    assert found(tmp_path) == ["a/b/c.txt"]
    (tmp_path / "root").symlink_to("a")
    assert found(tmp_path / "root") == ["b/c.txt"]  # a root that is a link is followed


def test_globs_choose_and_leave_out(tmp_path: Path):
    plant(tmp_path, "a.md", "b.txt", "drafts/c.md", "deep/drafts/d.md", "deep/e.md", "top.md")
    assert found(tmp_path, include=("*.md",)) == ["a.md", "deep/drafts/d.md", "deep/e.md", "drafts/c.md", "top.md"]
    assert found(tmp_path, include=("*.md",), exclude=("drafts/", "/top.md")) == ["a.md", "deep/e.md"]
    assert found(tmp_path, include=("deep/**",)) == ["deep/drafts/d.md", "deep/e.md"]
    assert skipped(tmp_path, include=("*.md",), exclude=("/deep",)) == {"b.txt": "not included", "deep": "excluded"}


@pytest.mark.parametrize("pattern", ["!", "**/a/**/a/**/a/**/a/**/a"])
def test_a_glob_that_is_none_or_that_would_take_for_ever_is_refused(pattern: str):
    with pytest.raises(InputError, match="is not a valid pattern"):
        WalkRules(exclude=(pattern,))


IGNORE_FILES = {
    ".gitignore": (
        "*.log\n!keep.log\n/only-top.txt\nbuild/\nspaced\\ name.txt\n# comment\n\\#literal.txt\ndocs/*.tmp\n**/gen/**\n"
    ),
    "src/.gitignore": "!debug.log\n*.txt\n!/kept.txt\n",
    "src/deep/.gitignore": "!*.txt\n/a/b\n",
    "other/build/.gitignore": "!*\n",
}
NAMES = """
    a.log keep.log only-top.txt src/only-top.txt build/x.txt src/build/y.txt other/build/z.txt docs/a.tmp docs/in/b.tmp
    src/debug.log src/trace.log src/kept.txt src/lost.txt src/deep/t.txt src/deep/a/b/c.txt src/deep/a/d.txt
    x/gen/y.txt gen/z.txt #literal.txt src/deep/more/kept.txt src/deep/more/x.log notes.md build.txt
"""


@pytest.mark.skipif(not shutil.which("git"), reason="git is the judge")
def test_ignored_is_what_git_ignores(tmp_path: Path):
    plant(tmp_path, *NAMES.split(), "spaced name.txt", "src/deep/spaced name.txt")
    for name, lines in IGNORE_FILES.items():
        (tmp_path / name).write_text(lines, encoding="utf-8")
    environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    listed = git("ls-files", "-z", "--others", "--exclude-standard").split("\0")[:-1]
    expected = sorted(name for name in listed if not name.endswith(".gitignore"))
    assert sorted(found(tmp_path)) == expected
    assert "src/debug.log" in expected
    assert "a.log" not in expected
    below = sorted(name.removeprefix("src/") for name in expected if name.startswith("src/"))
    assert sorted(found(tmp_path / "src")) == below  # the repository's rules hold for a folder in it


def test_ignore_files_are_passed_by_when_asked(tmp_path: Path):
    plant(tmp_path, "a.log", "b.txt")
    (tmp_path / ".gitignore").write_text("*.log\n", encoding="utf-8")
    assert found(tmp_path) == ["b.txt"]
    assert skipped(tmp_path)["a.log"] == "ignored by .gitignore"
    assert found(tmp_path, ignore_files=()) == ["a.log", "b.txt"]


def test_an_ignore_file_with_bad_lines_is_named_and_its_other_lines_hold(tmp_path: Path):
    plant(tmp_path, "a.log", "b.txt")
    (tmp_path / ".gitignore").write_text("**/a/**/a/**/a/**/a/**/a\n*.log\n", encoding="utf-8")
    assert found(tmp_path) == ["b.txt"]
    assert skipped(tmp_path)[".gitignore"] == "hidden"
    items = [item for item in walk([tmp_path]) if item.path.name == ".gitignore"]
    assert any("invalid patterns" in item.reason for item in items if isinstance(item, SkippedFile))


def test_names_with_line_ends_marks_of_direction_and_bytes_that_are_not_unicode_are_found(tmp_path: Path):
    names = ["line\nend.txt", "\u202egpj.txt", "emoji-🦊.md", os.fsdecode(b"byte-\xff.txt")]
    for name in names:
        try:
            (tmp_path / name).write_text("text", encoding="utf-8")
        except OSError:
            names = [each for each in names if each != name]  # this file system takes Unicode names only
    assert sorted(found(tmp_path)) == sorted(names)


def test_folders_that_are_deeper_than_paths_are_long_do_not_end_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plant(tmp_path, "z.txt")
    monkeypatch.chdir(tmp_path)
    name = "d" * 200
    for _ in range(25):
        os.mkdir(name)
        os.chdir(name)
    try:
        items = list(walk([tmp_path]))
        assert [type(item) for item in items] == [MissingRoot, FoundFile]
        assert "too long" in str(items[0].reason if isinstance(items[0], MissingRoot) else "")
    finally:
        for _ in range(25):
            os.chdir("..")
            os.rmdir(name)
