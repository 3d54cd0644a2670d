"""Read checkpoints tensor by tensor: safetensors in one file or sharded, with or without `model.` in tensor names.

Opening a checkpoint reads only the headers and checks every name, shape, dtype and byte range against the spec, so a
missing, extra, wrongly shaped or truncated tensor is reported immediately, with its file and name. Reading a tensor
maps only its own bytes, so peak memory is the size of the largest tensor, not of the model.
"""

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge.errors import CheckpointError, InputError
from pplx_edge.spec import ModelSpec

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PREFIX = "model."
_IGNORED = {"lm_head.weight"}  # the language model's head, which an encoder does not have
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
_HEADER_LENGTH_BYTES = 8
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True, slots=True)
class _Stored:
    """The location of a tensor: bytes `[start, stop)` of a file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class Checkpoint:
    """A directory with config.json and safetensors weights, checked against each other."""

    def __init__(self, directory: Path, spec: ModelSpec, tensors: Mapping[str, _Stored]):
        self.directory, self.spec, self._tensors = directory, spec, tensors

    @classmethod
    def open(cls, directory: str | Path, spec: ModelSpec | None = None) -> "Checkpoint":
        """Open the checkpoint in a directory. Raises CheckpointError, or UnsupportedModel for its config.json."""
        directory = Path(directory)
        spec = spec or ModelSpec.from_directory(directory)
        tensors: dict[str, _Stored] = {}
        for path in weight_files(directory):
            for name, stored in _read_header(path).items():
                name = name.removeprefix(_PREFIX)
                if name in tensors:
                    raise CheckpointError(f"{path}: tensor {name} is also in {tensors[name].path.name}")
                tensors[name] = stored
        _require_match(tensors, spec, directory)
        return cls(directory, spec, tensors)

    @property
    def files(self) -> list[Path]:
        """The weight files, sorted."""
        return sorted({stored.path for stored in self._tensors.values()})

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32; an F32 tensor stays mapped. Raises CheckpointError for NaN or infinity."""
        stored = self._tensors[name]
        return self._checked(name, _as_float32(_map_bytes(stored, stored.start, stored.stop), stored.dtype)).reshape(
            stored.shape
        )

    def read_block(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows `[start, stop)` of a matrix as float32. Raises InputError for rows out of range."""
        stored = self._tensors[name]
        n_rows, n_cols = stored.shape
        if not 0 <= start <= stop <= n_rows:
            raise InputError(f"{stored.path}: tensor {name} has {n_rows:,} rows, [{start}, {stop}) is out of range")
        row_bytes = n_cols * _ITEM_BYTES[stored.dtype]
        raw = _map_bytes(stored, stored.start + start * row_bytes, stored.start + stop * row_bytes)
        return self._checked(name, _as_float32(raw, stored.dtype)).reshape(stop - start, n_cols)

    def read_rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return the rows of a matrix with the given indices, an integer array `[R]`: float32 `[R, columns]`."""
        width = self._tensors[name].shape[1]
        found = {row: self.read_block(name, row, row + 1)[0] for row in {int(row) for row in rows}}
        return np.array([found[int(row)] for row in rows], np.float32).reshape(len(rows), width)

    def layer(self, index: int) -> dict[str, np.ndarray]:
        """Return all tensors of one layer as float32, by their name within the layer."""
        return {name: self.read(f"layers.{index}.{name}") for name in self.spec.layer_shapes()}

    def _checked(self, name: str, values: np.ndarray) -> np.ndarray:
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{self._tensors[name].path}: tensor {name} contains NaN or infinity; download the file again"
            )
        return values


def has_weights(directory: Path) -> bool:
    """Return whether a directory contains safetensors files or an index of them, even if incomplete."""
    return any(directory.glob("*.safetensors")) or any(directory.glob("*.safetensors.index.json"))


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint: the single file, or the shards listed in its index.

    Raises CheckpointError if there is neither, or if a shard is missing.
    """
    index = directory / INDEX_FILE
    if (directory / SINGLE_FILE).is_file():
        return [directory / SINGLE_FILE]
    if not index.is_file():
        found = sorted(path.name for path in directory.glob("*.bin"))
        hint = f" ({found[0]} is a pickle and is never opened: convert it to safetensors)" if found else ""
        raise CheckpointError(f"{directory}: contains neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")
    return [directory / name for name in _shard_names(index)]


def _shard_names(index: Path) -> list[str]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: not a safetensors index ({error!r})") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise CheckpointError(f"{index}: shard name {name!r} is not a plain file name")
        if not (index.parent / name).is_file():
            raise CheckpointError(f"{index.parent / name}: shard is missing, but {index.name} lists it")
    return names


def _read_header(path: Path) -> dict[str, _Stored]:
    """Return the location of each tensor by name from the header of a safetensors file, checking every byte range."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_HEADER_LENGTH_BYTES), "little")
            if size < _HEADER_LENGTH_BYTES or length > min(_MAX_HEADER_BYTES, size - _HEADER_LENGTH_BYTES):
                raise CheckpointError(
                    f"{path}: truncated or not safetensors: a header of {length:,} bytes in a file of {size:,}"
                )
            header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
    except OSError as error:
        raise CheckpointError(f"{path}: not readable ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: corrupt safetensors header ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: corrupt safetensors header (a JSON object was expected)")
    header.pop("__metadata__", None)
    base = _HEADER_LENGTH_BYTES + length
    tensors = {name: _stored(path, name, entry, base, size) for name, entry in header.items()}
    _require_side_by_side(path, tensors, base, size)
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names: set[str] = set()
    for name, _ in pairs:
        if name in names:
            raise ValueError(f"duplicate name {name}")
        names.add(name)
    return dict(pairs)


def _stored(path: Path, name: str, entry: Any, base: int, size: int) -> _Stored:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or not isinstance(shape, list):
            raise TypeError("dtype must be a name and shape a list")
        if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
            raise ValueError("sizes and offsets must be natural numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: corrupt header entry of tensor {name} ({error!r})") from error
    if dtype not in _ITEM_BYTES:
        quantised = "; these weights are already quantized" if dtype.startswith(("U", "I", "F8")) else ""
        raise CheckpointError(f"{path}: tensor {name} is {dtype}, supported are {', '.join(_ITEM_BYTES)}{quantised}")
    expected = math.prod(shape) * _ITEM_BYTES[dtype]
    if stop - start != expected:
        raise CheckpointError(
            f"{path}: tensor {name} {shape} {dtype} needs {expected:,} bytes, but its header gives {stop - start:,}"
        )
    if base + stop > size:
        raise CheckpointError(
            f"{path}: truncated: tensor {name} ends at byte {base + stop:,}, but the file has {size:,}; "
            "download it again"
        )
    return _Stored(path, name, dtype, tuple(shape), base + start, base + stop)


def _require_side_by_side(path: Path, tensors: Mapping[str, _Stored], base: int, size: int) -> None:
    """Raise CheckpointError if a file has gaps or overlaps between its tensors, or bytes after the last one."""
    position = base
    for stored in sorted(tensors.values(), key=lambda stored: (stored.start, stored.stop)):
        if stored.start != position:
            raise CheckpointError(
                f"{path}: corrupt: tensor {stored.name} begins at byte {stored.start:,}, expected {position:,}"
            )
        position = stored.stop
    if position != size:
        raise CheckpointError(f"{path}: corrupt: the last {size - position:,} bytes belong to no tensor")


def _require_match(tensors: Mapping[str, _Stored], spec: ModelSpec, directory: Path) -> None:
    expected = spec.tensor_shapes()
    where = next(iter(tensors.values())).path if tensors else directory
    if missing := [name for name in expected if name not in tensors]:
        raise CheckpointError(f"{where}: tensor {missing[0]} is missing ({len(missing)} of {len(expected)} missing)")
    if extra := [name for name in tensors if name not in expected and name not in _IGNORED]:
        raise CheckpointError(
            f"{tensors[extra[0]].path}: tensor {extra[0]} is not part of this model ({len(extra)} unknown)"
        )
    for name, shape in expected.items():
        found = tensors[name]
        if found.shape != shape:
            raise CheckpointError(
                f"{found.path}: tensor {name} has shape {list(found.shape)}, config.json implies {list(shape)}"
            )


def _map_bytes(stored: _Stored, start: int, stop: int) -> np.ndarray:
    """Return bytes `[start, stop)` of a file as a mapped uint8 array, which keeps the mapping alive."""
    if start == stop:
        return np.empty(0, np.uint8)
    aligned = start - start % mmap.ALLOCATIONGRANULARITY
    try:
        with stored.path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), stop - aligned, access=mmap.ACCESS_READ, offset=aligned)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{stored.path}: tensor {stored.name} can no longer be read ({error})") from error
    return np.frombuffer(mapped, np.uint8, offset=start - aligned)


def _as_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "F32":
        return _unaligned_view(raw, np.float32)
    if dtype == "F16":
        return _unaligned_view(raw, np.float16).astype(np.float32)
    return (_unaligned_view(raw, np.uint16).astype(np.uint32) << 16).view(
        np.float32
    )  # bf16 is the upper half of float32


def _unaligned_view(raw: np.ndarray, dtype: type) -> np.ndarray:
    return np.frombuffer(raw.data, dtype)
