"""Converted models on disk: a directory with a manifest that lists its files and its parity with the source model.

Artifacts are written with `files.replacing_directory`, so a directory never contains a partial model.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pplx_edge import layout
from pplx_edge.errors import ArtifactError
from pplx_edge.registry import BACKENDS, Backend, backend_of_format

FORMAT_VERSION = 1
_HASH_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A converted model: its directory and the contents of its manifest.

    `format` is the artifact format (`onnx-int8`) and `revision` the revision of that format (1 if the manifest has
    none). `source` says where the weights came from, including their revision. `files` gives the size and SHA-256 of
    every file, and `parity` the results of comparing the codes with the reference.
    """

    directory: Path
    format: str
    revision: int = 1
    source: Mapping[str, Any]
    weights: Mapping[str, Any] = field(default_factory=dict)
    equalization: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    made_by: str = ""

    @classmethod
    def open(cls, directory: str | Path) -> "Artifact":
        """Open the artifact in a directory and check that its files are present and have the right size.

        Raises ArtifactError if the manifest is missing, malformed or of another version, if this release does not open
        the revision of the format, or if a file is missing or has the wrong size.
        """
        directory = Path(directory)
        path = directory / layout.MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            version = manifest.pop("format_version")
            if version != FORMAT_VERSION:
                raise ArtifactError(
                    f"{path}: format version {version}, but this release reads {FORMAT_VERSION}; "
                    "convert the model again"
                )
            artifact = cls(directory=directory, **manifest)
            artifact._require_well_formed()
        except FileNotFoundError:
            raise ArtifactError(f"{path}: not found; this directory is not a converted model") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path}: not a valid manifest ({error}); convert the model again") from error
        artifact._require_revision()
        artifact._require_sizes()
        return artifact

    @property
    def fingerprint(self) -> str:
        """A hash of the contents of all files but measurements of the reference, as 64 hexadecimal digits.

        Measurements differ in their last bits between processors, and decide nothing about the vectors.
        """
        hashes = sorted((name, entry["sha256"]) for name, entry in self.files.items() if name != layout.COREML_PROBE)
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()

    def path(self, name: str) -> Path:
        """Return the path of one of the files."""
        return self.directory / name

    def verify(self) -> None:
        """Read every file and raise ArtifactError for the first one whose SHA-256 differs from the manifest."""
        for name, entry in self.files.items():
            if (found := sha256(self.directory / name)) != entry["sha256"]:
                raise ArtifactError(
                    f"{self.directory / name}: modified: SHA-256 is {found[:12]}…, "
                    f"the manifest says {entry['sha256'][:12]}…"
                )

    def _require_well_formed(self) -> None:
        """Raise TypeError or ValueError if a field has the wrong type or an invalid value."""
        if not isinstance(self.format, str) or not isinstance(self.made_by, str):
            raise TypeError("format and made_by must be strings")
        if not isinstance(self.revision, int):
            raise TypeError("revision must be a number")
        for name in ("source", "weights", "equalization", "parity", "files"):
            if not isinstance(getattr(self, name), dict):
                raise TypeError(f"{name} must be an object")
        for name, entry in self.files.items():
            if not name or PurePosixPath(name).is_absolute() or ".." in name.split("/") or "\\" in name:
                raise ValueError(f"{name!r} is not a file in this directory or its subdirectories")
            if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
                raise TypeError(f"the entry of {name} needs bytes and sha256")

    def _require_revision(self) -> None:
        backend = backend_of_format(self.format)
        if backend and self.revision != backend.revision:
            raise ArtifactError(
                f"{self.directory}: {self.format} revision {self.revision}, but this release opens revision "
                f"{backend.revision}; "
                f"convert the model again: pplx-edge convert SOURCE --to {self.format} --out DIR"
            )

    def _require_sizes(self) -> None:
        for name, entry in self.files.items():
            path = self.directory / name
            if not path.is_file():
                raise ArtifactError(f"{path}: missing; convert the model again")
            if path.stat().st_size != entry["bytes"]:
                raise ArtifactError(
                    f"{path}: {path.stat().st_size:,} bytes, but the manifest says {entry['bytes']:,}; "
                    "convert the model again"
                )


def is_artifact(directory: str | Path) -> bool:
    """Return whether a directory contains a manifest."""
    return (Path(directory) / layout.MANIFEST).is_file()


def ready_made(directory: Path) -> Backend | None:
    """Return the backend that opens the ready-made model files in a directory, or None if there are none."""
    return next((backend for backend in BACKENDS.values() if ready_made_files(directory, backend)), None)


def ready_made_files(directory: Path, backend: Backend) -> list[Path]:
    """Return the model files in a directory that other tools have made for a backend, best first."""
    found = (path for pattern in backend.ready_made for path in sorted(directory.glob(pattern)))
    return list(dict.fromkeys(path for path in found if path.is_file()))


def write_manifest(
    directory: Path,
    *,
    artifact_format: str,
    source: Mapping[str, Any],
    weights: Mapping[str, Any],
    parity: Mapping[str, Any],
    made_by: str,
    equalization: Mapping[str, Any] | None = None,
) -> None:
    """Hash every file in a directory and its subdirectories, and write the manifest."""
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / layout.MANIFEST
    }
    backend = backend_of_format(artifact_format)
    artifact = Artifact(
        directory=directory,
        format=artifact_format,
        revision=backend.revision if backend else 1,
        source=source,
        weights=weights,
        equalization=equalization or {},
        parity=parity,
        files=files,
        made_by=made_by,
    )
    manifest = {"format_version": FORMAT_VERSION} | asdict(artifact)
    del manifest["directory"]
    (directory / layout.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, reading the file in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_CHUNK):
            digest.update(block)
    return digest.hexdigest()
