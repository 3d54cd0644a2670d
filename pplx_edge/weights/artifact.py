"""Converted models on disk: a directory and a manifest that says what is in it and how far it strays from its source.

Only this module knows the file names. A directory is written beside its target, flushed to disk and renamed, so it is
there whole or not at all.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pplx_edge.errors import ArtifactError, InputError, StorageError

FORMAT_VERSION = 1
MANIFEST_FILE = "pplx-edge.json"
_HASH_CHUNK = 1 << 20
# Graphs of a hub repository, best first on a processor.
_READY_GRAPHS = ("model_quantized.onnx", "model_int8.onnx", "model.onnx", "model_q4.onnx")
_PARTIAL = ".partial-"  # and the process that writes it
_NOT_WRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
)


# What a checkpoint can be converted to, by the backend that opens it; the first is what it is converted to unasked.
FORMATS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx-int8", "onnx-fp32"),
    "mlx": ("mlx-bf16", "mlx-q8", "mlx-q4", "mlx-mxfp8", "mlx-mxfp4", "mlx-nvfp4", "mlx-mixed"),
    "coreml": ("coreml-fp16", "coreml-int8", "coreml-pal4", "coreml-pal6", "coreml-pal8"),
}
# Raise one when a graph, a layout or the numerics of a backend's formats change: cached conversions are then made anew,
# and artifacts of another revision are refused.
REVISIONS = {"onnx": 3, "mlx": 1, "coreml": 1}
# Files that a conversion copies from its source.
TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class OnnxLayout:
    """Files of an ONNX artifact, beside TEXT_FILES."""

    graph: str = "model.onnx"
    weights: str = "model.onnx_data"


@dataclass(frozen=True, slots=True)
class MlxLayout:
    """Files of an MLX artifact, beside TEXT_FILES: weights as checkpoints have them, or shards, and how to pool."""

    shard: str = "model-{:05d}-of-{:05d}.safetensors"
    modules: str = "modules.json"
    pooling: str = "1_Pooling"


@dataclass(frozen=True, slots=True)
class CoremlLayout:
    """Files of a Core ML artifact, beside TEXT_FILES: packages of programs, and the embedding table that they lack."""

    package: str = "model.mlpackage"
    flexible: str = "flexible.mlpackage"
    table: str = "embedding.safetensors"


ONNX_LAYOUT = OnnxLayout()
MLX_LAYOUT = MlxLayout()
COREML_LAYOUT = CoremlLayout()


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A converted model: its directory and what its manifest says.

    `format` names the conversion (`onnx-int8`), `revision` the state of the converter for it (1 where a manifest has
    none), `source` where the weights came from and at which revision, `files` the size and SHA-256 of every file,
    `parity` how the codes compare with the reference.
    """

    directory: Path
    format: str
    revision: int = 1
    source: Mapping[str, Any]
    weights: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    made_by: str = ""

    @classmethod
    def open(cls, directory: str | Path) -> "Artifact":
        """The artifact in a directory, its files present and of the right size.

        Raises ArtifactError when the manifest is missing, malformed or of another version, when the format is of
        another revision than this release opens, or when a file is not as the manifest says.
        """
        directory = Path(directory)
        path = directory / MANIFEST_FILE
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            version = manifest.pop("format_version")
            if version != FORMAT_VERSION:
                raise ArtifactError(
                    f"{path}: format version {version}, this release reads {FORMAT_VERSION}; convert the model again"
                )
            artifact = cls(directory=directory, **manifest)
            artifact._require_well_formed()
        except FileNotFoundError:
            raise ArtifactError(f"{path}: not found; this directory is not a converted model") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{path}: not a manifest ({error}); convert the model again") from error
        artifact._require_revision()
        artifact._require_sizes()
        return artifact

    @property
    def fingerprint(self) -> str:
        """A hash of what all its files hold."""
        hashes = sorted((name, entry["sha256"]) for name, entry in self.files.items())
        return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()

    def path(self, name: str) -> Path:
        """Where one of its files is."""
        return self.directory / name

    def verify(self) -> None:
        """Reads every file and raises ArtifactError for the first whose SHA-256 is not the manifest's."""
        for name, entry in self.files.items():
            if (found := sha256(self.directory / name)) != entry["sha256"]:
                raise ArtifactError(
                    f"{self.directory / name}: altered: SHA-256 {found[:12]}…, manifest {entry['sha256'][:12]}…"
                )

    def _require_well_formed(self) -> None:
        """Raises TypeError or ValueError when a field does not hold what it should."""
        if not isinstance(self.format, str) or not isinstance(self.made_by, str):
            raise TypeError("format and made_by must be strings")
        if not isinstance(self.revision, int):
            raise TypeError("revision must be a number")
        for name in ("source", "weights", "parity", "files"):
            if not isinstance(getattr(self, name), dict):
                raise TypeError(f"{name} must be an object")
        for name, entry in self.files.items():
            if not name or PurePosixPath(name).is_absolute() or ".." in name.split("/") or "\\" in name:
                raise ValueError(f"{name!r} is not a file in or below this directory")
            if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
                raise TypeError(f"the entry of {name} needs bytes and sha256")

    def _require_revision(self) -> None:
        wanted = format_revision(self.format)
        if self.revision != wanted:
            raise ArtifactError(
                f"{self.directory}: {self.format} of revision {self.revision}, this release opens revision {wanted}; "
                f"convert the model again: pplx-edge convert SOURCE --to {self.format} --out DIR"
            )

    def _require_sizes(self) -> None:
        for name, entry in self.files.items():
            path = self.directory / name
            if not path.is_file():
                raise ArtifactError(f"{path}: missing; convert the model again")
            if path.stat().st_size != entry["bytes"]:
                raise ArtifactError(
                    f"{path}: {path.stat().st_size:,} bytes, manifest says {entry['bytes']:,}; convert the model again"
                )


def format_revision(format: str) -> int:
    """Return the revision of a format that this release writes and opens; 1 for a format that it does not know."""
    return REVISIONS.get(family_of(format), 1)


def family_of(format: str) -> str:
    """The backend that opens a format."""
    return format.partition("-")[0]


def is_artifact(directory: str | Path) -> bool:
    """Whether a directory holds a manifest."""
    return (Path(directory) / MANIFEST_FILE).is_file()


def ready_graphs(directory: Path) -> list[Path]:
    """The ONNX graphs that others made, in `onnx/` or beside the config, as hub repositories hold them; best first."""
    found = [path for folder in (directory / "onnx", directory) for path in sorted(folder.glob("*.onnx"))]
    rank = {name: i for i, name in enumerate(_READY_GRAPHS)}
    return sorted((path for path in found if path.is_file()), key=lambda path: rank.get(path.name, len(rank)))


@contextmanager
def writing(target: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary directory beside `target` that becomes it when the block ends, and vanishes when the block raises.

    Raises InputError when the target exists and is not to be replaced, StorageError when the disk is full.
    """
    target = Path(target)
    if target.exists() and not replace:
        raise InputError(f"{target}: exists already; choose another directory or replace it on purpose (--force)")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}{_PARTIAL}{os.getpid()}-", dir=target.parent))
    try:
        with storage_errors(target):
            yield partial
            _flush(partial)
            _swap(partial, target, replace)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_manifest(
    directory: Path,
    *,
    format: str,
    source: Mapping[str, Any],
    weights: Mapping[str, Any],
    parity: Mapping[str, Any],
    made_by: str,
) -> None:
    """Hashes every file in and below a directory and writes its manifest."""
    files = {
        path.relative_to(directory).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / MANIFEST_FILE
    }
    artifact = Artifact(
        directory=directory,
        format=format,
        revision=format_revision(format),
        source=source,
        weights=weights,
        parity=parity,
        files=files,
        made_by=made_by,
    )
    manifest = {"format_version": FORMAT_VERSION} | asdict(artifact)
    del manifest["directory"]
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_CHUNK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def storage_errors(target: Path) -> Iterator[None]:
    """Turns a full or unwritable disk into StorageError naming the target."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"{target}: the disk is full; nothing was left there: free some space and try again"
            ) from error
        if error.errno in _NOT_WRITABLE:
            raise StorageError(f"{target}: not writable ({error.strerror})") from error
        raise


def _remove_abandoned(target: Path) -> None:
    """Deletes what processes that were killed while writing the same target have left beside it."""
    start = f".{target.name}{_PARTIAL}"
    for path in target.parent.iterdir():
        process, _, _ = path.name.removeprefix(start).partition("-")
        if path.name.startswith(start) and process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else, or cannot be told
        return True
    return True


def _flush(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(partial: Path, target: Path, replace: bool) -> None:
    """Renames partial to target; what stood there goes away only once the new directory is in place."""
    os.chmod(partial, 0o755)
    if not replace:
        _rename_to_new(partial, target)
    elif not target.exists():
        os.rename(partial, target)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        os.rename(target, old / target.name)
        os.rename(partial, target)
        shutil.rmtree(old)
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_to_new(partial: Path, target: Path) -> None:
    """Raises InputError when somebody else has put something there in the meantime."""
    try:
        os.rename(partial, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise InputError(f"{target}: appeared while it was being made; what is there was kept") from error
        raise
