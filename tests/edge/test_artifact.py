import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pplx_edge.errors import ArtifactError, InputError, StorageError
from pplx_edge.weights.artifact import (
    MANIFEST_FILE,
    REVISIONS,
    Artifact,
    is_artifact,
    sha256,
    storage_errors,
    write_manifest,
    writing,
)

FACTS: dict[str, Any] = {
    "format": "onnx-int8",
    "source": {"name": "nano", "revision": "abc"},
    "weights": {"linear": "int8 per channel"},
    "parity": {"min_cosine": 0.9991},
    "made_by": "pplx-edge 0.1.0",
}


@pytest.fixture
def artifact_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "artifact"
    directory.mkdir()
    (directory / "model.onnx").write_bytes(b"graph")
    (directory / "model.onnx_data").write_bytes(bytes(range(256)) * 9000)  # more than one block of the hash
    write_manifest(directory, **FACTS)
    return directory


def manifest_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))


def change_manifest(directory: Path, **changes: Any) -> None:
    manifest = {name: value for name, value in (manifest_of(directory) | changes).items() if value is not ...}
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")


def refused(directory: Path, said: str) -> None:
    with pytest.raises(ArtifactError, match=said) as caught:
        Artifact.open(directory)
    assert "\n" not in str(caught.value)


# Manifest


def test_what_was_written_is_read(artifact_dir: Path):
    artifact = Artifact.open(str(artifact_dir))
    assert {name: getattr(artifact, name) for name in FACTS} == FACTS
    assert artifact.path("model.onnx").read_bytes() == b"graph"
    artifact.verify()


def test_every_file_but_the_manifest_is_listed_with_its_hash(artifact_dir: Path):
    files = manifest_of(artifact_dir)["files"]
    contents = {path.name: path.read_bytes() for path in artifact_dir.iterdir() if path.name != MANIFEST_FILE}
    assert files == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_sha256_of_any_size(size: int, tmp_path: Path):
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_manifest_makes_an_artifact(artifact_dir: Path, tmp_path: Path):
    assert is_artifact(artifact_dir)
    assert not is_artifact(tmp_path)
    assert not is_artifact(tmp_path / "nowhere")


def test_a_directory_without_manifest_is_refused(tmp_path: Path):
    refused(tmp_path, r"pplx-edge\.json: not found; this directory is not a converted model")
    refused(tmp_path / "nowhere", "not found")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", r"pplx-edge\.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"{}", b"\xff", b'{"format_version": 1}'])
def test_a_corrupt_manifest_is_refused(content: bytes, artifact_dir: Path):
    (artifact_dir / MANIFEST_FILE).write_bytes(content)
    refused(artifact_dir, r"pplx-edge\.json: not a valid manifest .*convert the model again")


@pytest.mark.parametrize("field", ["format", "source", "format_version"])
def test_a_manifest_without_a_field_is_refused(field: str, artifact_dir: Path):
    change_manifest(artifact_dir, **{field: ...})
    refused(artifact_dir, "not a valid manifest")


def test_an_earlier_revision_of_a_format_is_refused_by_name(artifact_dir: Path):
    assert manifest_of(artifact_dir)["revision"] == REVISIONS["onnx"]
    for old in (..., REVISIONS["onnx"] - 1):  # the first manifests had none
        change_manifest(artifact_dir, revision=old)
        refused(artifact_dir, "onnx-int8 revision .*convert the model again: pplx-edge convert SOURCE --to onnx-int8")


def test_another_format_version_is_refused(artifact_dir: Path):
    for version in (0, 2, "1", None):
        change_manifest(artifact_dir, format_version=version)
        refused(artifact_dir, rf"format version {version}, but this release reads 1; convert the model again")


def test_a_missing_file_is_named(artifact_dir: Path):
    (artifact_dir / "model.onnx_data").unlink()
    refused(artifact_dir, r"model\.onnx_data: missing; convert the model again")


@pytest.mark.parametrize("content", [b"", b"grap", b"graph!"])
def test_a_file_of_another_size_is_named(content: bytes, artifact_dir: Path):
    (artifact_dir / "model.onnx").write_bytes(content)
    refused(artifact_dir, rf"model\.onnx: {len(content)} bytes, but the manifest says 5; convert the model again")


def test_an_altered_file_is_found_when_verified(artifact_dir: Path):
    (artifact_dir / "model.onnx").write_bytes(b"grapH")
    artifact = Artifact.open(artifact_dir)
    with pytest.raises(ArtifactError, match=r"model\.onnx: modified: SHA-256 is \w{12}…, the manifest says \w{12}…"):
        artifact.verify()


# A manifest is not believed too soon


def test_a_later_version_with_other_fields_is_refused_by_its_version(artifact_dir: Path):
    change_manifest(artifact_dir, format_version=2, signature="abc", made_by=...)
    refused(artifact_dir, "format version 2, but this release reads 1")


MALFORMED: dict[str, Any] = {
    "files is a list": {"files": []},
    "files is null": {"files": None},
    "an entry is null": {"files": {"model.onnx": None}},
    "an entry has no size": {"files": {"model.onnx": {"sha256": "0" * 64}}},
    "an entry has no hash": {"files": {"model.onnx": {"bytes": 5}}},
    "a size is text": {"files": {"model.onnx": {"bytes": "5", "sha256": "0" * 64}}},
    "a file is outside": {"files": {"../outside": {"bytes": 5, "sha256": "0" * 64}}},
    "format is a list": {"format": ["onnx-int8"]},
    "parity is text": {"parity": "good"},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_manifest_is_refused(case: str, artifact_dir: Path):
    (artifact_dir.parent / "outside").write_bytes(b"12345")
    change_manifest(artifact_dir, **MALFORMED[case])
    refused(artifact_dir, "not a valid manifest")


# Writing


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
    with writing("out") as partial:
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
    def forbidden(*_: Any, **__: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", forbidden)
    with pytest.raises(StorageError, match=r"out: not writable \(Permission denied\)"), writing(tmp_path / "out"):
        pytest.fail("the block must not run")


def test_a_parent_that_is_a_file_is_a_storage_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="out"), writing(tmp_path / "file" / "out"):
        pytest.fail("the block must not run")


FILL = """
import resource, sys
from pplx_edge.weights.artifact import writing
from pplx_edge.errors import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    with writing(sys.argv[1]) as partial:
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
from pplx_edge.weights.artifact import writing
with writing(sys.argv[1]) as partial:
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
