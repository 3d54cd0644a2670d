import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from pplx_edge import layout
from pplx_edge.errors import ArtifactError
from pplx_edge.registry import ONNX
from pplx_edge.weights.artifact import (
    Artifact,
    is_artifact,
    sha256,
    write_manifest,
)

FACTS: dict[str, Any] = {
    "artifact_format": "onnx-int8",
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
    return json.loads((directory / layout.MANIFEST).read_text(encoding="utf-8"))


def change_manifest(directory: Path, **changes: Any) -> None:
    manifest = {name: value for name, value in (manifest_of(directory) | changes).items() if value is not ...}
    (directory / layout.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def refused(directory: Path, said: str) -> None:
    with pytest.raises(ArtifactError, match=said) as caught:
        Artifact.open(directory)
    assert "\n" not in str(caught.value)


# Manifest


def test_what_was_written_is_read(artifact_dir: Path):
    artifact = Artifact.open(str(artifact_dir))
    found = {"artifact_format": artifact.format, "source": artifact.source, "weights": artifact.weights}
    assert found | {"parity": artifact.parity, "made_by": artifact.made_by} == FACTS
    assert artifact.path("model.onnx").read_bytes() == b"graph"
    artifact.verify()


def test_every_file_but_the_manifest_is_listed_with_its_hash(artifact_dir: Path):
    files = manifest_of(artifact_dir)["files"]
    contents = {path.name: path.read_bytes() for path in artifact_dir.iterdir() if path.name != layout.MANIFEST}
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
    (artifact_dir / layout.MANIFEST).write_bytes(content)
    refused(artifact_dir, r"pplx-edge\.json: not a valid manifest .*convert the model again")


@pytest.mark.parametrize("field", ["format", "source", "format_version"])
def test_a_manifest_without_a_field_is_refused(field: str, artifact_dir: Path):
    change_manifest(artifact_dir, **{field: ...})
    refused(artifact_dir, "not a valid manifest")


def test_an_earlier_revision_of_a_format_is_refused_by_name(artifact_dir: Path):
    assert manifest_of(artifact_dir)["revision"] == ONNX.revision
    for old in (..., ONNX.revision - 1):  # the first manifests had none
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
