"""Write a safetensors file piece by piece: the header first, then the bytes of the tensors in any order.

Peak memory is the size of one piece, not of the file. A safetensors file consists of the header length, a JSON header,
and the tensors without gaps.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "U32": 4, "I8": 1, "U8": 1}
_ALIGNMENT = 8
_LENGTH_BYTES = 8
_MODE = 0o644


class SafetensorsFile:
    """An open file with tensors `{name: (dtype, shape)}`; the bytes of each are appended by name."""

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]):
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        self._places: dict[str, tuple[int, int]] = {}
        end = 0
        for name, (dtype, shape) in tensors.items():
            start, end = end, end + n_bytes(dtype, shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
            self._places[name] = (start, end)
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % _ALIGNMENT)
        base = _LENGTH_BYTES + len(encoded)
        self._next = {name: base + start for name, (start, _) in self._places.items()}
        self._end = {name: base + stop for name, (_, stop) in self._places.items()}
        self._file = path.open("wb")
        path.chmod(_MODE)
        self._file.write(len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded)

    def append(self, name: str, values: np.ndarray) -> None:
        """Append bytes to a tensor. Raises ValueError if they exceed its size."""
        raw = np.ascontiguousarray(values)
        if self._next[name] + raw.nbytes > self._end[name]:
            raise ValueError(f"tensor {name} is longer than its header says")
        self._file.seek(self._next[name])
        self._file.write(raw.data)
        self._next[name] += raw.nbytes

    def close(self) -> None:
        """Close the file. Raises ValueError if a tensor is incomplete."""
        self._file.close()
        if short := [name for name, position in self._next.items() if position != self._end[name]]:
            raise ValueError(f"tensor {short[0]} is shorter than its header says")

    def abandon(self) -> None:
        """Close the file without checking that all tensors are complete."""
        self._file.close()


def n_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the size of a tensor in a safetensors file, in bytes."""
    return _ITEM_BYTES[dtype] * math.prod(shape)
