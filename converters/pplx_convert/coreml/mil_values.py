"""Decode the constants of a saved Core ML program from its protobuf and its weight file, without coremltools.

The weight file consists of a 64-byte header, followed by a 64-byte record and the bytes of each tensor. A record
contains a marker, a type, the number of bytes and their offset. Values of fewer than 8 bits are packed, lowest bits
first.
"""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from pplx_convert.coreml.mil import proto
from pplx_edge.errors import ArtifactError

_RECORD = struct.Struct("<IIQQ")  # marker, type, number of bytes, offset
_MARK = 0xDEADBEEF
_PLAIN = {
    "BOOL": np.dtype(bool),
    "FLOAT16": np.dtype(np.float16),
    "FLOAT32": np.dtype(np.float32),
    "INT8": np.dtype(np.int8),
    "INT32": np.dtype(np.int32),
    "UINT8": np.dtype(np.uint8),
}
_PACKED_BITS = {"UINT4": 4, "UINT6": 6}


def type_name(type: Any) -> str:
    """Return the name of the element type of a value, for example `FLOAT16`."""
    return proto.MIL_pb2.DataType.Name(type.tensorType.dataType)


def decoded(value: Any, weight_file: Path) -> Any:
    """Return a constant as a string or an array of its declared shape. Tensors in the weight file stay mapped to it."""
    name, shape = type_name(value.type), tuple(size.constant.size for size in value.type.tensorType.dimensions)
    if value.WhichOneof("value") == "blobFileValue":
        return _of_bytes(_mapped(weight_file, value.blobFileValue.offset), name, shape)
    tensor = value.immediateValue.tensor
    kind = tensor.WhichOneof("value")
    if kind == "bytes":
        return _of_bytes(np.frombuffer(tensor.bytes.values, np.uint8), name, shape)
    values = getattr(tensor, kind).values
    if name == "STRING":
        return values[0] if shape == () else list(values)
    return np.array(values, _plain(name)).reshape(shape)


def _of_bytes(raw: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    n = int(np.prod(shape, dtype=np.int64))
    if name in _PACKED_BITS:
        return unpacked(raw, _PACKED_BITS[name], n).reshape(shape)
    dtype = _plain(name)
    if raw.size != n * dtype.itemsize:
        raise ArtifactError(f"a {name} constant of shape {list(shape)} has {raw.size} bytes; convert the model again")
    return np.frombuffer(raw.data, dtype).reshape(shape)


def unpacked(raw: np.ndarray, bits: int, n: int) -> np.ndarray:
    """Unpack `n` unsigned values of `bits` bits each, packed lowest bits first, and return them as uint8."""
    stream = np.unpackbits(raw, count=n * bits, bitorder="little").reshape(n, bits)
    return np.packbits(stream, axis=1, bitorder="little").reshape(n)


def _plain(name: str) -> np.dtype:
    if name not in _PLAIN:
        raise ArtifactError(f"a constant has type {name}, which the evaluation does not support")
    return _PLAIN[name]


def _mapped(path: Path, offset: int) -> np.ndarray:
    record = np.memmap(path, np.uint8, "r", offset, (_RECORD.size,))
    mark, _, n_bytes, start = _RECORD.unpack(record.tobytes())
    if mark != _MARK:
        raise ArtifactError(f"{path}: no tensor begins at byte {offset:,}; convert the model again")
    return np.memmap(path, np.uint8, "r", start, (n_bytes,))
