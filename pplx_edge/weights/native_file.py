"""The model file of the CPU kernels: everything that they read, in the order and layout in which they read it.

The file is defined in `pplx_edge/kernels/include/pplx_kernels.h`: a header of 128 bytes, a directory of tensors, and
the tensors at multiples of 64 bytes. Sizes, places and types all follow from the sizes of the model, so header and
directory of a valid file are known in advance, and a file with any other header or directory is refused.

A projection `[N, K]` is stored as V4x16, int8 `[N/16, K/4, 16, 4]`: 64 bytes hold four neighboring inputs of 16 output
channels, which is one operand of the dot-product instructions of every processor. Sizes are padded with zeros: hidden
and inner sizes to 64, and each half of a head, which rotates with the other half, to 32.

The format `native-int4` stores the int8 codes of projections in 4 bits, with a multiplier and a zero point per 32
inputs of a channel (`weights.rounding`). The kernels unpack them to V4x16.
"""

import mmap
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pplx_edge.errors import ArtifactError
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.rounding import INT4_GROUP, Int4Codes, quantize_int4

FORMAT_BITS = {"native-int8": 8, "native-int4": 4}  # of the weights of projections
_MAGICS = {8: b"PPLXINT8", 4: b"PPLXINT4"}
_VERSION, _BYTE_ORDER, _ALIGNMENT = 1, 0x01020304, 64
_HEADER = struct.Struct("<8s4I2Q8I2f48x")
_ENTRY = struct.Struct("<4I4Q")
PANEL, _QUAD = 16, 4  # output channels of a panel, and neighboring inputs of a channel that lie side by side
_HEAD_HALF = 32
_BLOCK_ROWS = 64  # output channels that are rounded to 4 bits at a time
_FIELDS = (
    *("magic number", "version", "byte order", "header size", "number of tensors", "file size", "directory offset"),
    *("number of layers", "hidden size", "number of heads", "number of key heads", "head size", "intermediate size"),
    *("vocabulary size", "maximum tokens", "eps of the head norms", "eps of the stream norms"),
)
_DERIVED = ("number of tensors", "file size", "directory offset")  # they differ if another field does


class Kind(IntEnum):
    """The kind of a tensor in the file."""

    TABLE = 1
    TABLE_SCALES = 2
    INPUT_NORM = 3
    QKV = 4
    QKV_SCALES = 5
    QKV_SUMS = 6
    Q_NORM = 7
    K_NORM = 8
    O = 9  # noqa: E741
    O_SCALES = 10
    O_SUMS = 11
    POST_NORM = 12
    GATE_UP = 13
    GATE_UP_SCALES = 14
    GATE_UP_SUMS = 15
    DOWN = 16
    DOWN_SCALES = 17
    DOWN_SUMS = 18
    FINAL_NORM = 19
    COS = 20
    SIN = 21


class _Type(IntEnum):
    """The storage type of a tensor."""

    INT8_ROWS = 1
    INT8_V4X16 = 2
    FLOAT32 = 3
    INT32 = 4
    INT4_V4X16 = 5


_NUMPY = {
    _Type.INT8_ROWS: np.int8,
    _Type.INT8_V4X16: np.int8,
    _Type.FLOAT32: np.float32,
    _Type.INT32: np.int32,
    _Type.INT4_V4X16: np.uint8,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An entry of the directory: `[rows, columns]` of a type, at a byte offset of the file."""

    kind: Kind
    layer: int
    type: _Type
    rows: int
    columns: int
    offset: int

    @property
    def n_values(self) -> int:
        n_weights = self.rows * self.columns
        return n_weights // 2 + n_weights // INT4_GROUP if self.type == _Type.INT4_V4X16 else n_weights

    @property
    def n_bytes(self) -> int:
        return self.n_values * np.dtype(_NUMPY[self.type]).itemsize

    def shaped(self, values: np.ndarray) -> np.ndarray:
        """Return the values in the shape in which they are stored."""
        if self.type == _Type.INT8_V4X16:
            return values.reshape(self.rows // PANEL, self.columns // _QUAD, PANEL, _QUAD)
        if self.type == _Type.INT4_V4X16:
            return values.reshape(self.rows // PANEL, -1)
        return values.reshape(self.rows, self.columns)


class Weights(Protocol):
    """A source of quantized weights. Names are those of a checkpoint."""

    def table_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield blocks of rows of the embedding table, int8 `[R, D]`, with their float32 scales `[R]`."""
        ...

    def vector(self, name: str) -> np.ndarray:
        """Return the weight of a norm, float32."""
        ...

    def projection(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of a projection, int8 `[N, K]`, and its scales, float32 `[N]`.

        For a file of 4 bits, the codes are float32, and are rounded when they are written.
        """
        ...

    def rotary(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rotary cosines and sines, float32 `[max_tokens, head_dim / 2]` each."""
        ...


def directory(spec: ModelSpec, bits: int = 8) -> list[Tensor]:
    """Return the tensors of a model in the order of the file."""
    sizes = _Sizes(spec)
    rows = _Type.FLOAT32

    def projection(codes: Kind, layer: int, n_out: int, n_in: int) -> list[tuple[Kind, int, _Type, int, int]]:
        return [
            (codes, layer, _Type.INT8_V4X16 if bits == 8 else _Type.INT4_V4X16, n_out, n_in),
            (Kind(codes + 1), layer, rows, 1, n_out),
            (Kind(codes + 2), layer, _Type.INT32, 1, n_out),
        ]

    planned: list[tuple[Kind, int, _Type, int, int]] = [
        (Kind.TABLE, 0, _Type.INT8_ROWS, spec.vocab_size, sizes.hidden),
        (Kind.TABLE_SCALES, 0, rows, 1, spec.vocab_size),
    ]
    for layer in range(spec.n_layers):
        planned += [
            (Kind.INPUT_NORM, layer, rows, 1, sizes.hidden),
            *projection(Kind.QKV, layer, sizes.query + 2 * sizes.key, sizes.hidden),
            (Kind.Q_NORM, layer, rows, 1, 2 * sizes.half),
            (Kind.K_NORM, layer, rows, 1, 2 * sizes.half),
            *projection(Kind.O, layer, sizes.hidden, sizes.query),
            (Kind.POST_NORM, layer, rows, 1, sizes.hidden),
            *projection(Kind.GATE_UP, layer, 2 * sizes.inner, sizes.hidden),
            *projection(Kind.DOWN, layer, sizes.hidden, sizes.inner),
        ]
    planned += [
        (Kind.FINAL_NORM, 0, rows, 1, sizes.hidden),
        (Kind.COS, 0, rows, spec.max_tokens, sizes.half),
        (Kind.SIN, 0, rows, spec.max_tokens, sizes.half),
    ]
    tensors, offset = [], _HEADER.size + len(planned) * _ENTRY.size
    for entry in planned:
        tensors.append(Tensor(*entry, offset=_up(offset, _ALIGNMENT)))
        offset = tensors[-1].offset + tensors[-1].n_bytes
    return tensors


def file_bytes(spec: ModelSpec, bits: int = 8) -> int:
    """Return the size of the file of a model."""
    last = directory(spec, bits)[-1]
    return last.offset + last.n_bytes


def write_model(
    sink: Any, spec: ModelSpec, weights: Weights, step: Callable[[], None] = lambda: None, bits: int = 8
) -> None:
    """Write the file of a model to `sink`, an open file or a mapping, with one tensor in memory at a time.

    Calls `step` after each layer.
    """
    tensors = directory(spec, bits)
    position = sink.write(_beginning(spec, tensors, bits))
    for tensor, blocks in zip(tensors, _stored_values(spec, weights, step, bits), strict=True):
        sink.write(bytes(tensor.offset - position))
        written = sum(sink.write(np.ascontiguousarray(block).data.cast("B")) for block in blocks)
        if written != tensor.n_bytes:
            raise ValueError(
                f"{tensor.kind.name} of layer {tensor.layer} has {written:,} bytes, not {tensor.n_bytes:,}"
            )
        position = tensor.offset + written


def model_image(spec: ModelSpec, weights: Weights, bits: int = 8) -> mmap.mmap:
    """Return the file of a model in anonymous memory."""
    image = mmap.mmap(-1, file_bytes(spec, bits))
    write_model(image, spec, weights, bits=bits)
    return image


def map_model(path: Path, spec: ModelSpec, bits: int = 8) -> mmap.mmap:
    """Map the file of a model for reading.

    Raises ArtifactError, naming the first difference, if it is not exactly the file that the model needs.
    """
    tensors = directory(spec, bits)
    expected = _beginning(spec, tensors, bits)
    try:
        with path.open("rb") as file:
            found = file.read(len(expected))
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if found else None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error})") from error
    if found != expected:
        raise ArtifactError(f"{path}: {_difference(found, expected, tensors)}; convert the model again")
    needed = file_bytes(spec, bits)
    if mapped is None or len(mapped) != needed:
        raise ArtifactError(
            f"{path}: {len(mapped or b''):,} bytes, but this model needs {needed:,}; convert the model again"
        )
    return mapped


def stored_tensors(model: mmap.mmap, spec: ModelSpec) -> Mapping[tuple[Kind, int], np.ndarray]:
    """Return the tensors of a mapped model by kind and layer, without copying them."""
    return {
        (tensor.kind, tensor.layer): tensor.shaped(
            np.frombuffer(model, _NUMPY[tensor.type], tensor.n_values, tensor.offset)
        )
        for tensor in directory(spec, next(bits for bits, magic in _MAGICS.items() if model[: len(magic)] == magic))
    }


def panels(codes: np.ndarray) -> np.ndarray:
    """Return codes `[N, K]` as V4x16 `[N/16, K/4, 16, 4]`."""
    return codes.reshape(-1, PANEL, codes.shape[1] // _QUAD, _QUAD).swapaxes(1, 2)


def packed_panels(codes: Int4Codes) -> np.ndarray:
    """Return panels of 4 bits, uint8 `[N/16, bytes of a panel]`, as the header file defines them."""
    n_panels, n_in = len(codes.codes) // PANEL, codes.codes.shape[1]
    groups = (codes.zeros << 4 | codes.multipliers).reshape(n_panels, PANEL, -1).swapaxes(1, 2)
    quads = panels(codes.codes).reshape(n_panels, n_in // (2 * _QUAD), 2, PANEL * _QUAD)
    return np.concatenate(
        [groups.reshape(n_panels, -1), (quads[:, :, 1] << 4 | quads[:, :, 0]).reshape(n_panels, -1)], axis=1
    )


def unpacked(stored: np.ndarray) -> np.ndarray:
    """Return the int8 codes `[N, K]` of an array of V4x16 or of panels of 4 bits."""
    if stored.ndim == 4:
        return stored.swapaxes(1, 2).reshape(stored.shape[0] * PANEL, -1)
    n_in = stored.shape[1] * 2 * INT4_GROUP // (PANEL * (INT4_GROUP + 2))
    groups, pairs = np.split(stored, [PANEL * n_in // INT4_GROUP], axis=1)
    groups = groups.reshape(len(stored), -1, PANEL).swapaxes(1, 2).reshape(len(stored) * PANEL, -1)
    pairs = pairs.reshape(len(stored), -1, 1, PANEL, _QUAD)
    codes = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(len(stored), -1, PANEL, _QUAD)
    return Int4Codes(unpacked(codes), groups & 15, groups >> 4).int8_codes()


@dataclass(frozen=True, slots=True)
class _Sizes:
    """The padded sizes of a model."""

    spec: ModelSpec

    @property
    def hidden(self) -> int:
        return _up(self.spec.hidden_size, _ALIGNMENT)

    @property
    def inner(self) -> int:
        return _up(self.spec.intermediate_size, _ALIGNMENT)

    @property
    def half(self) -> int:
        return _up(self.spec.head_dim // 2, _HEAD_HALF)

    @property
    def query(self) -> int:
        return self.spec.n_heads * 2 * self.half

    @property
    def key(self) -> int:
        return self.spec.n_kv_heads * 2 * self.half


def _beginning(spec: ModelSpec, tensors: list[Tensor], bits: int) -> bytes:
    """Return the header and the directory of the file of a model."""
    last = tensors[-1]
    header = _HEADER.pack(
        *(_MAGICS[bits], _VERSION, _BYTE_ORDER, _HEADER.size, len(tensors), last.offset + last.n_bytes, _HEADER.size),
        *(spec.n_layers, spec.hidden_size, spec.n_heads, spec.n_kv_heads, spec.head_dim, spec.intermediate_size),
        *(spec.vocab_size, spec.max_tokens, spec.rms_norm_eps, spec.stream_eps),
    )
    entries = (_ENTRY.pack(t.kind, t.layer, t.type, 0, t.rows, t.columns, t.offset, t.n_bytes) for t in tensors)
    return b"".join((header, *entries))


def _difference(found: bytes, expected: bytes, tensors: list[Tensor]) -> str:
    """Return the first difference of a header and directory from the expected ones, in words."""
    if len(found) < len(expected):
        return f"truncated: {len(found):,} bytes, but header and directory take {len(expected):,}"
    fields = zip(_FIELDS, _HEADER.unpack_from(found), _HEADER.unpack_from(expected), strict=True)
    for name, value, wanted in sorted(fields, key=lambda field: field[0] in _DERIVED):
        if value != wanted:
            return f"its {name} is {value!r}, but this model needs {wanted!r}"
    for i, tensor in enumerate(tensors):
        place = slice(_HEADER.size + i * _ENTRY.size, _HEADER.size + (i + 1) * _ENTRY.size)
        if found[place] != expected[place]:
            return f"the directory entry of {tensor.kind.name} in layer {tensor.layer} is not that of this model"
    return "its header has unknown fields"


def _stored_values(
    spec: ModelSpec, weights: Weights, step: Callable[[], None], bits: int
) -> Iterator[Iterable[np.ndarray]]:
    """Yield the values of each tensor of the file, in order and padded, as blocks to be written one after another."""
    sizes = _Sizes(spec)
    scales: list[np.ndarray] = []

    def table() -> Iterator[np.ndarray]:
        for codes, block_scales in weights.table_blocks():
            scales.append(block_scales)
            yield _resized(codes, len(codes), sizes.hidden)

    def heads(values: np.ndarray) -> np.ndarray:
        """Pad the halves of heads along the first axis."""
        halves = values.reshape(-1, spec.head_dim // 2, *values.shape[1:])
        return _resized(halves, len(halves), sizes.half, *values.shape[1:]).reshape(-1, *values.shape[1:])

    def stored_projection(codes: np.ndarray, row_scales: np.ndarray) -> Iterator[Iterable[np.ndarray]]:
        """Yield the three tensors of a padded projection."""
        if bits == 8:
            yield [panels(codes)]
            yield [row_scales]
            yield [codes.sum(axis=1, dtype=np.int32)]
            return
        sums: list[np.ndarray] = []

        def blocks() -> Iterator[np.ndarray]:
            for start in range(0, len(codes), _BLOCK_ROWS):
                rounded = quantize_int4(codes[start : start + _BLOCK_ROWS])
                sums.append(rounded.int8_codes().sum(axis=1, dtype=np.int32))
                yield packed_panels(rounded)

        yield blocks()
        yield [row_scales]
        yield sums

    yield table()
    yield scales
    for layer in range(spec.n_layers):
        prefix = f"layers.{layer}."
        yield [_resized(weights.vector(f"{prefix}input_layernorm.weight"), sizes.hidden)]
        q, k, v = (weights.projection(f"{prefix}self_attn.{name}_proj.weight") for name in "qkv")
        yield from stored_projection(
            np.concatenate([heads(_resized(codes, len(codes), sizes.hidden)) for codes, _ in (q, k, v)]),
            np.concatenate([heads(row_scales) for _, row_scales in (q, k, v)]),
        )
        for name in ("q_norm", "k_norm"):
            yield [heads(weights.vector(f"{prefix}self_attn.{name}.weight"))]
        codes, row_scales = weights.projection(f"{prefix}self_attn.o_proj.weight")
        yield from stored_projection(
            _resized(heads(codes.T), sizes.query, sizes.hidden).T, _resized(row_scales, sizes.hidden)
        )
        yield [_resized(weights.vector(f"{prefix}post_attention_layernorm.weight"), sizes.hidden)]
        both = [weights.projection(f"{prefix}mlp.{name}_proj.weight") for name in ("gate", "up")]
        yield from stored_projection(
            _alternating([_resized(codes, sizes.inner, sizes.hidden) for codes, _ in both]),
            _alternating([_resized(row_scales, sizes.inner) for _, row_scales in both]),
        )
        codes, row_scales = weights.projection(f"{prefix}mlp.down_proj.weight")
        yield from stored_projection(_resized(codes, sizes.hidden, sizes.inner), _resized(row_scales, sizes.hidden))
        step()
    yield [_resized(weights.vector("norm.weight"), sizes.hidden)]
    for angles in weights.rotary():
        yield [_resized(angles, spec.max_tokens, sizes.half)]


def _alternating(values: list[np.ndarray]) -> np.ndarray:
    """Return arrays `[N, …]` joined so that their panels of 16 entries take turns."""
    rest = values[0].shape[1:]
    return np.stack([array.reshape(-1, PANEL, *rest) for array in values], axis=1).reshape(-1, *rest)


def _resized(values: np.ndarray, *shape: int) -> np.ndarray:
    """Return the values padded with zeros to a shape."""
    if values.shape == shape:
        return values
    return np.pad(values, [(0, size - old) for size, old in zip(shape, values.shape, strict=True)])


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
