"""Write an ONNX model with a single int8 matrix product, without `onnx`, whose import takes longer than loading nano.

A protobuf message is a sequence of fields. Each field is a tag (field number and wire type), followed by a number, or
by a length and that many bytes.
"""

from collections.abc import Mapping

import numpy as np

_NUMBER, _BYTES = 0, 2  # wire types
_IR_VERSION, _OPSET, _CUSTOM_OPSET = 10, 21, 1
_CUSTOM = b"com.microsoft"
_ELEMENTS = {np.dtype(np.float32): 1, np.dtype(np.uint8): 2, np.dtype(np.int8): 3}  # as ONNX numbers them


def product_model(weight: np.ndarray) -> bytes:
    """Return a serialized model of the linear layers' operator, with input `a` uint8 `[N, K]` and output `y` `[N, M]`.

    `weight` is int8 `[K, M]` and `y` is float32. The zero point of `a` is 128, and all scales are 1.
    """
    constants = {
        "w": weight,
        "one": np.float32(1),
        "scales": np.ones(weight.shape[1], np.float32),
        "zero": np.uint8(128),
    }
    graph = _field(1, _node(["a", *constants], "y")) + _field(2, b"product")
    graph += b"".join(_field(5, tensor) for tensor in _tensors(constants))
    graph += _field(11, _value("a", np.uint8, weight.shape[0])) + _field(12, _value("y", np.float32, weight.shape[1]))
    opsets = _field(8, _field(1, b"") + _field(2, _OPSET)) + _field(8, _field(1, _CUSTOM) + _field(2, _CUSTOM_OPSET))
    return _field(1, _IR_VERSION) + _field(7, graph) + opsets


def _node(inputs: list[str], output: str) -> bytes:
    names = b"".join(_field(1, name.encode()) for name in inputs)
    return names + _field(2, output.encode()) + _field(4, b"MatMulIntegerToFloat") + _field(7, _CUSTOM)


def _tensors(constants: Mapping[str, np.generic | np.ndarray]) -> list[bytes]:
    return [
        b"".join(_field(1, size) for size in value.shape)
        + _field(2, _ELEMENTS[value.dtype])
        + _field(8, name.encode())
        + _field(9, value.tobytes())
        for name, value in constants.items()
    ]


def _value(name: str, dtype: type[np.generic], width: int) -> bytes:
    """Return a value info message for a matrix with any number of rows."""
    shape = _field(1, _field(2, b"rows")) + _field(1, _field(1, width))
    return _field(1, name.encode()) + _field(2, _field(1, _field(1, _ELEMENTS[np.dtype(dtype)]) + _field(2, shape)))


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | _NUMBER) + _varint(value)
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Encode a number as a protobuf varint: seven bits per byte, lowest first; the top bit marks continuation."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
