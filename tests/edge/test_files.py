"""Files and directories that are replaced atomically, also when the disk is full or the process is killed."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pplx_edge import files
from pplx_edge.errors import InputError, StorageError
from pplx_edge.files import left_by_crash, move_into_place, replacing_directory, replacing_file, storage_errors


@contextmanager
def writing(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Provide a directory that becomes `target`, as a conversion does."""
    with storage_errors(target), replacing_directory(target, replace=replace) as partial:
        yield partial


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_directory_appears_only_when_its_block_ends(tmp_path: Path):
    target = tmp_path / "deep" / "out"
    with writing(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
        assert partial.parent == target.parent
    assert (target / "a").read_text() == "1"
    assert left_in(target.parent) == ["out"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_relative_target_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with writing(Path("out")) as partial:
        (partial / "a").write_text("1")
    assert left_in(tmp_path) == ["out"]


def write_and_raise(target: Path, error: BaseException, *, replace: bool = False) -> None:
    with writing(target, replace=replace) as partial:
        (partial / "new").write_text("new")
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_a_block_that_raises_leaves_nothing(error: type[BaseException], tmp_path: Path):
    with pytest.raises(error):
        write_and_raise(tmp_path / "out", error())
    assert left_in(tmp_path) == []


def existing(tmp_path: Path) -> Path:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    return target


def test_what_stands_there_is_not_replaced_by_accident(tmp_path: Path):
    target = existing(tmp_path)
    with pytest.raises(InputError, match=r"out: already exists; .*--force"), writing(target):
        pytest.fail("the block must not run")
    assert left_in(tmp_path) == ["out"]
    assert left_in(target) == ["old"]


def test_what_stands_there_is_replaced_whole(tmp_path: Path):
    target = existing(tmp_path)
    with writing(target, replace=True) as partial:
        (partial / "new").write_text("new")
        assert left_in(target) == ["old"]
    assert left_in(target) == ["new"]
    assert left_in(tmp_path) == ["out"]


def test_a_failed_replacement_leaves_the_old_one(tmp_path: Path):
    target = existing(tmp_path)
    with pytest.raises(ValueError, match="broken"):
        write_and_raise(target, ValueError("broken"), replace=True)
    assert left_in(target) == ["old"]
    assert left_in(tmp_path) == ["out"]


def path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks up descriptors in /proc")
def test_everything_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(path_of(fd)), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b)))
    with writing(tmp_path / "out") as partial:
        (partial / "a").write_text("1")
        (partial / "b").write_text("2")
        names = {str(partial / "a"), str(partial / "b"), str(partial)}
    where = events.index("rename")
    assert set(events[:where]) == names
    assert events[where + 1 :] == [str(tmp_path)]


def test_on_a_mac_the_cache_of_the_disk_is_flushed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []

    def unsupported(_: int, command: int) -> None:
        calls.append(command)
        raise OSError(errno.ENOTSUP, "not on this file system")

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", unsupported)
    with writing(tmp_path / "out") as partial:
        (partial / "a").write_text("1")
    assert calls == [51] * 3  # the file, its folder, and the folder of that
    assert (tmp_path / "out" / "a").read_text() == "1"


FULL = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG]
FORBIDDEN = [errno.EACCES, errno.EPERM, errno.EROFS]


@pytest.mark.parametrize("number", FULL + FORBIDDEN)
def test_a_disk_that_refuses_is_a_storage_error(number: int, tmp_path: Path):
    said = r"out: the disk is full and nothing was written" if number in FULL else r"out: not writable"
    with pytest.raises(StorageError, match=said):
        write_and_raise(tmp_path / "out", OSError(number, os.strerror(number)))
    assert left_in(tmp_path) == []


def test_other_errors_of_the_system_are_passed_on(tmp_path: Path):
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "gone")


def test_a_parent_that_cannot_be_written_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.mkdir", forbidden)
    with pytest.raises(StorageError, match=r"out: not writable \(Permission denied\)"), writing(tmp_path / "out"):
        pytest.fail("the block must not run")


def test_a_parent_that_is_a_file_is_a_storage_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="out"), writing(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")


FILL = """
import resource, sys
from pplx_edge.files import replacing_directory, storage_errors
from pathlib import Path
from pplx_edge.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    with storage_errors(Path(sys.argv[1])), replacing_directory(Path(sys.argv[1])) as partial:
        (partial / "big").write_bytes(bytes(1 << 20))
except StorageError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits a process's file size")
def test_a_file_the_system_refuses_to_grow_leaves_nothing(tmp_path: Path):
    child = subprocess.run([sys.executable, "-c", FILL, tmp_path / "out"], capture_output=True, text=True, check=True)
    assert "the disk is full" in child.stdout
    assert left_in(tmp_path) == []


KILLED = """
import os, signal, sys
from pplx_edge.files import replacing_directory, storage_errors
from pathlib import Path
with replacing_directory(Path(sys.argv[1])) as partial:
    (partial / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_with_the_next_try(tmp_path: Path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], check=False)
    assert killed.returncode == -9
    assert len(left_in(tmp_path)) == 1
    (tmp_path / ".other.partial-1-x").mkdir()
    with writing(tmp_path / "out") as mine:
        assert left_in(tmp_path) == sorted([mine.name, ".other.partial-1-x"])
        with writing(tmp_path / "out" / ".." / "out2"):
            assert mine.is_dir()
        (mine / "whole").write_text("whole")
    assert left_in(tmp_path) == [".other.partial-1-x", "out", "out2"]


# Replacing a directory


def test_a_crash_between_two_renames_leaves_the_previous_version(tmp_path: Path):
    target = existing(tmp_path)
    program = """
import os, signal, sys
from pathlib import Path
from pplx_edge import files
rename = os.rename
def rename_once(source, target):
    rename(source, target)
    os.kill(os.getpid(), signal.SIGKILL)
os.rename = rename_once
with files.replacing_directory(Path(sys.argv[1]), replace=True) as partial:
    (partial / "new").write_text("new")
"""
    assert subprocess.run([sys.executable, "-c", program, str(target)], check=False).returncode == -9
    previous = left_by_crash(target)
    assert previous is not None
    assert left_in(previous) == ["old"]
    with writing(target, replace=True) as partial:
        (partial / "newer").write_text("newer")
    assert left_by_crash(target) is None
    assert left_in(tmp_path) == ["out"]
    assert left_in(target) == ["newer"]


def test_a_replacement_that_cannot_be_renamed_puts_the_old_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target, rename = existing(tmp_path), os.rename

    def refused(source: Path, to: Path) -> None:
        if to == target and ".partial-" in source.name:
            raise PermissionError(errno.EACCES, "Permission denied")
        rename(source, to)

    monkeypatch.setattr(files.os, "rename", refused)
    with pytest.raises(StorageError, match="out: not writable"), writing(target, replace=True) as partial:
        (partial / "new").write_text("new")
    assert left_in(target) == ["old"]
    assert left_in(tmp_path) == ["out"]


def test_a_target_that_appears_in_the_meantime_is_kept(tmp_path: Path):
    made = tmp_path / "made"
    made.mkdir()
    with pytest.raises(InputError, match="was created by another process"):
        move_into_place(made, existing(tmp_path))
    assert left_in(tmp_path / "out") == ["old"]


# Files


def test_a_file_appears_only_when_its_block_ends(tmp_path: Path):
    target = tmp_path / "deep" / "x.npy"
    for content in ("first", "second"):
        with replacing_file(target) as partial:
            assert partial.suffix == ".npy"
            partial.write_text(content)
            assert left_in(target.parent) == sorted([partial.name, *(["x.npy"] if content == "second" else [])])
        assert target.read_text() == content
        assert left_in(target.parent) == ["x.npy"]


def write_half_a_file(target: Path) -> None:
    with replacing_file(target) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt


def test_a_file_whose_block_raises_is_not_replaced(tmp_path: Path):
    target = tmp_path / "x.npy"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half_a_file(target)
    assert target.read_text() == "old"
    assert left_in(tmp_path) == ["x.npy"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks up descriptors in /proc")
def test_a_file_is_flushed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(path_of(fd)), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("replace"), replace(a, b)))
    with replacing_file(tmp_path / "x") as partial:
        partial.write_text("1")
    assert events == [str(partial), "replace", str(tmp_path)]


def test_what_a_killed_process_left_of_a_file_goes_with_the_next_try(tmp_path: Path):
    ended = subprocess.run(["sh", "-c", "echo $$"], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / f".x.partial-{ended}-0.npy").write_text("half")
    (tmp_path / f".x.partial-{ended}-0.bin").write_text("of another file")
    with replacing_file(tmp_path / "x.npy") as partial:
        partial.write_text("whole")
    assert left_in(tmp_path) == [f".x.partial-{ended}-0.bin", "x.npy"]
