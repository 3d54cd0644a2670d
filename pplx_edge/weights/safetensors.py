"""Read and write safetensors files with bounded memory: tensors are mapped when read, and written piece by piece.

A safetensors file consists of the length of its header, a JSON header, and the tensors without gaps. The `safetensors`
library can only write a file whose tensors are all in memory, and its NumPy reader has no bfloat16.
"""

import json
import math
import mmap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from pplx_edge.errors import CheckpointError

_DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format
_ALIGNMENT = 8
_MODE = 0o644


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """The location of a tensor: bytes `[start, stop)` of a file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def array(self, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the tensor, or entries `[first, stop)` of its first axis, as a mapped array; bfloat16 as uint16.

        Only these bytes are mapped, as long as the array exists. Raises CheckpointError if the file can no longer be
        read.
        """
        n_rows, *width = self.shape or (1,)
        stop = n_rows if stop is None else stop
        shape = (stop - first, *width) if self.shape else ()
        row_bytes = n_bytes(self.dtype, width)
        raw = self._map(self.start + first * row_bytes, self.start + stop * row_bytes)
        return np.frombuffer(raw.data, _DTYPES[self.dtype]).reshape(shape)

    def _map(self, start: int, stop: int) -> np.ndarray:
        if start == stop:
            return np.empty(0, np.uint8)
        aligned = start - start % mmap.ALLOCATIONGRANULARITY
        try:
            with self.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), stop - aligned, access=mmap.ACCESS_READ, offset=aligned)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: tensor {self.name} can no longer be read ({error})") from error
        return np.frombuffer(mapped, np.uint8, offset=start - aligned)


def read_header(path: Path, dtypes: Collection[str] = tuple(_DTYPES)) -> dict[str, StoredTensor]:
    """Return the location of each tensor in a file, by name.

    Raises CheckpointError unless the file is complete, every byte after the header belongs to exactly one tensor, and
    every tensor has one of the given dtypes.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or length > min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
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
    base = _LENGTH_BYTES + length
    tensors = {name: _stored(path, name, entry, base, size, dtypes) for name, entry in header.items()}
    _require_side_by_side(path, tensors, base, size)
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names: set[str] = set()
    for name, _ in pairs:
        if name in names:
            raise ValueError(f"duplicate name {name}")
        names.add(name)
    return dict(pairs)


def _stored(path: Path, name: str, entry: Any, base: int, size: int, dtypes: Collection[str]) -> StoredTensor:
    try:
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or not isinstance(shape, list):
            raise TypeError("dtype must be a name and shape a list")
        if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
            raise ValueError("sizes and offsets must be natural numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: corrupt header entry of tensor {name} ({error!r})") from error
    if dtype not in dtypes:
        hint = "; these weights are already quantized" if dtype.startswith(("U", "I", "F8")) else ""
        raise CheckpointError(f"{path}: tensor {name} is {dtype}, supported are {', '.join(dtypes)}{hint}")
    expected = n_bytes(dtype, shape)
    if stop - start != expected:
        raise CheckpointError(
            f"{path}: tensor {name} {shape} {dtype} needs {expected:,} bytes, but its header gives {stop - start:,}"
        )
    if base + stop > size:
        raise CheckpointError(
            f"{path}: truncated: tensor {name} ends at byte {base + stop:,}, but the file has {size:,}; "
            "download it again"
        )
    return StoredTensor(path, name, dtype, tuple(shape), base + start, base + stop)


def _require_side_by_side(path: Path, tensors: Mapping[str, StoredTensor], base: int, size: int) -> None:
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


class SafetensorsWriter:
    """Writes a file with tensors `{name: (dtype, shape)}`; the values of each are appended by name, in any order.

    The file is complete when the with-block ends; if it is not, ValueError is raised.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]):
        self._tensors = dict(tensors)
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        bounds: dict[str, tuple[int, int]] = {}
        end = 0
        for name, (dtype, shape) in tensors.items():
            start, end = end, end + n_bytes(dtype, shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
            bounds[name] = (start, end)
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % _ALIGNMENT)
        base = _LENGTH_BYTES + len(encoded)
        self._next = {name: base + start for name, (start, _) in bounds.items()}
        self._end = {name: base + stop for name, (_, stop) in bounds.items()}
        self._file = path.open("wb")
        path.chmod(_MODE)
        self._file.write(len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded)

    def append(self, name: str, values: np.ndarray) -> None:
        """Append values to a tensor. Raises ValueError if they exceed its size."""
        raw = np.ascontiguousarray(values)
        if self._next[name] + raw.nbytes > self._end[name]:
            raise ValueError(f"tensor {name} is longer than its header says")
        self._file.seek(self._next[name])
        self._file.write(raw.data)
        self._next[name] += raw.nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        for name, (dtype, shape) in self._tensors.items() if failure is None else ():
            total, missing = n_bytes(dtype, shape), self._end[name] - self._next[name]
            if missing:
                raise ValueError(
                    f"tensor {name} is shorter than its header says: {total - missing:,} of {total:,} bytes"
                )


def n_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Return the size of a tensor in a safetensors file, in bytes."""
    return _DTYPES[dtype].itemsize * math.prod(shape)
