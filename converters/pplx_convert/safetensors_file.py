"""A safetensors file written piece by piece: names, types and shapes first, then the bytes of any tensor in any order.

Peak memory is the piece at hand, not the file. The layout is that of the safetensors format: a length, a JSON header,
and the tensors side by side.
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
    """An open file whose tensors `{name: (type, shape)}` are written by name, from the beginning of each on."""

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
        """The next bytes of a tensor. Raises ValueError when they are more than it has."""
        raw = np.ascontiguousarray(values)
        if self._next[name] + raw.nbytes > self._end[name]:
            raise ValueError(f"tensor {name} is longer than its header says")
        self._file.seek(self._next[name])
        self._file.write(raw.data)
        self._next[name] += raw.nbytes

    def close(self) -> None:
        """Raises ValueError when a tensor was not written to its end."""
        self._file.close()
        if short := [name for name, position in self._next.items() if position != self._end[name]]:
            raise ValueError(f"tensor {short[0]} is shorter than its header says")

    def abandon(self) -> None:
        """Closes the file as it is."""
        self._file.close()


def n_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """The size of a tensor in such a file."""
    return _ITEM_BYTES[dtype] * math.prod(shape)
