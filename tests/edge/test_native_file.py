"""The model file of the CPU kernels: its layout against a slow reading of the header, and files that are refused."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from pplx_edge.errors import ArtifactError
from pplx_edge.spec import ModelSpec
from pplx_edge.weights import native_file
from pplx_edge.weights.native_file import Kind, directory, map_model, model_image, stored_tensors, unpacked
from pplx_edge.weights.rounding import quantize_int4

HEADER_BYTES, ENTRY_BYTES = 128, 48


class RandomWeights:
    """Random codes and scales of a model, the same each time that they are read."""

    def __init__(self, spec: ModelSpec):
        self.spec = spec
        rng = np.random.default_rng(0)
        self.tensors = {}
        for name, shape in spec.tensor_shapes().items():
            if len(shape) == 1:
                self.tensors[name] = rng.standard_normal(shape, np.float32)
            else:
                codes = rng.integers(-127, 128, shape, np.int8)
                self.tensors[name] = codes, rng.uniform(0.1, 1, shape[0]).astype(np.float32)
        self.angles = rng.standard_normal((2, spec.max_tokens, spec.head_dim // 2), np.float32)

    def table_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        codes, scales = self.tensors["embed_tokens.weight"]
        for start in range(0, len(codes), 150):
            yield codes[start : start + 150], scales[start : start + 150]

    def vector(self, name: str) -> np.ndarray:
        return self.tensors[name]

    def projection(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self.tensors[name]

    def rotary(self) -> tuple[np.ndarray, np.ndarray]:
        return self.angles[0], self.angles[1]


class FloatWeights(RandomWeights):
    """The same weights before they are rounded to 4 bits."""

    def projection(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        codes, scales = self.tensors[name]
        return codes.astype(np.float32), scales


def spec_of(model: str = "0.6b", **overrides: int) -> ModelSpec:
    return ModelSpec.from_config(tiny_config(model, **overrides))


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelSpec, RandomWeights]:
    """A file whose every size needs padding, its spec and its weights."""
    spec = spec_of("4b", hidden_size=72, head_dim=10, intermediate_size=100, num_hidden_layers=2)
    weights = RandomWeights(spec)
    path = tmp_path_factory.mktemp("native") / "model.native"
    path.write_bytes(model_image(spec, weights)[:])
    return path, spec, weights


def test_every_code_is_at_the_place_that_the_header_file_defines(tiny_file: tuple[Path, ModelSpec, RandomWeights]):
    path, spec, weights = tiny_file
    raw = path.read_bytes()
    half, hidden, inner = 32, 128, 128
    place = {(t.kind, t.layer): t.offset for t in directory(spec)}

    def code(kind: Kind, layer: int, n: int, k: int, n_in: int) -> int:
        at = place[kind, layer] + (n // 16) * (n_in // 4) * 64 + (k // 4) * 64 + (n % 16) * 4 + k % 4
        return int(np.int8(raw[at] - 256 if raw[at] > 127 else raw[at]))

    def padded_row(row: int) -> int:
        head, component = divmod(row, spec.head_dim)
        side, within = divmod(component, spec.head_dim // 2)
        return head * 2 * half + side * half + within

    rng = np.random.default_rng(1)
    for layer in range(spec.n_layers):
        named = {
            name: weights.projection(f"layers.{layer}.{part}.{name}_proj.weight")[0]
            for part, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down")))
            for name in names
        }
        first = {"q": 0, "k": spec.n_heads * 2 * half, "v": (spec.n_heads + spec.n_kv_heads) * 2 * half}
        for name, codes in named.items():
            for _ in range(200):
                row, column = (int(rng.integers(size)) for size in codes.shape)
                if name in first:
                    found = code(Kind.QKV, layer, first[name] + padded_row(row), column, hidden)
                elif name == "o":
                    found = code(Kind.O, layer, row, padded_row(column), spec.n_heads * 2 * half)
                elif name == "down":
                    found = code(Kind.DOWN, layer, row, column, inner)
                else:
                    panel = 2 * (row // 16) + (name == "up")
                    found = code(Kind.GATE_UP, layer, panel * 16 + row % 16, column, hidden)
                assert found == codes[row, column]
    stored = stored_tensors(map_model(path, spec), spec)
    for kind in (Kind.QKV, Kind.O, Kind.GATE_UP, Kind.DOWN):
        codes = unpacked(stored[kind, 1])
        np.testing.assert_array_equal(stored[Kind(kind + 2), 1][0], codes.sum(axis=1, dtype=np.int32))
        assert np.abs(codes.astype(int)).sum() == sum(
            np.abs(weights.projection(name)[0].astype(int)).sum()
            for name in spec.tensor_shapes()
            if name.startswith("layers.1.") and _stored_in(name) == kind
        ), "padding is not zero"
    np.testing.assert_array_equal(
        stored[Kind.TABLE, 0][:, : spec.hidden_size], weights.tensors["embed_tokens.weight"][0]
    )
    np.testing.assert_array_equal(stored[Kind.TABLE_SCALES, 0][0], weights.tensors["embed_tokens.weight"][1])
    np.testing.assert_array_equal(stored[Kind.SIN, 0][:, : spec.head_dim // 2], weights.angles[1])
    k_norm = stored[Kind.K_NORM, 1][0]
    expected = weights.vector("layers.1.self_attn.k_norm.weight")
    np.testing.assert_array_equal(k_norm[[padded_row(i) for i in range(spec.head_dim)]], expected)


def test_every_code_of_four_bits_is_at_the_place_that_the_header_file_defines(tmp_path: Path):
    spec = spec_of("4b", hidden_size=72, head_dim=10, intermediate_size=100, num_hidden_layers=2)
    path = tmp_path / "model.native"
    path.write_bytes(model_image(spec, FloatWeights(spec), 4)[:])
    raw, rng = path.read_bytes(), np.random.default_rng(1)
    stored = stored_tensors(map_model(path, spec, 4), spec)
    for tensor in directory(spec, 4):
        if tensor.kind not in (Kind.QKV, Kind.O, Kind.GATE_UP, Kind.DOWN):
            continue
        n_in, at = tensor.columns, tensor.offset
        codes = unpacked(stored[tensor.kind, tensor.layer])
        assert codes.shape == (tensor.rows, n_in)
        for n, k in zip(rng.integers(tensor.rows, size=200), rng.integers(n_in, size=200), strict=True):
            panel = at + n // 16 * (n_in // 2 * 16 + n_in // 32 * 16)
            group = raw[panel + k // 32 * 16 + n % 16]
            two = raw[panel + n_in // 32 * 16 + k // 8 * 64 + n % 16 * 4 + k % 4]
            code = two >> 4 if k % 8 >= 4 else two & 15
            assert codes[n, k] == (code - (group >> 4)) * (group & 15)
        sums = stored[Kind(tensor.kind + 2), tensor.layer][0]
        np.testing.assert_array_equal(sums, codes.sum(axis=1, dtype=np.int32))
    down = stored[Kind.DOWN, 1]
    np.testing.assert_array_equal(
        unpacked(down)[: spec.hidden_size, :96],
        quantize_int4(FloatWeights(spec).projection("layers.1.mlp.down_proj.weight")[0][:, :96]).int8_codes(),
    )


def _stored_in(name: str) -> Kind | None:
    kinds = {"q": Kind.QKV, "k": Kind.QKV, "v": Kind.QKV, "o": Kind.O, "gate": Kind.GATE_UP, "up": Kind.GATE_UP}
    return (kinds | {"down": Kind.DOWN}).get(name.split(".")[3].removesuffix("_proj"))


@given(
    st.integers(1, 3),
    st.integers(1, 80),
    st.sampled_from([(2, 1), (4, 2), (8, 2)]),
    st.integers(1, 40).map(lambda n: 2 * n),
    st.integers(1, 90),
    st.sampled_from([8, 4]),
)
@settings(max_examples=30)
def test_tensors_are_aligned_and_follow_each_other(
    layers: int, hidden: int, heads: tuple, head_dim: int, inner: int, bits: int
):
    spec = spec_of(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads[0],
        num_key_value_heads=heads[1],
        head_dim=head_dim,
        intermediate_size=inner,
        max_position_embeddings=40,
    )
    image = model_image(spec, RandomWeights(spec) if bits == 8 else FloatWeights(spec), bits)
    end = HEADER_BYTES + ENTRY_BYTES * len(directory(spec, bits))
    for tensor, raw in zip(directory(spec, bits), struct.iter_unpack("<4I4Q", image[HEADER_BYTES:end]), strict=True):
        assert raw[6] % 64 == 0
        assert end <= raw[6] < end + 64
        assert (raw[0], raw[1], raw[6], raw[7]) == (tensor.kind, tensor.layer, tensor.offset, tensor.n_bytes)
        end = raw[6] + raw[7]
    assert end == len(image)


# Hostile files


def refusal(raw: bytes, spec: ModelSpec, path: Path) -> str:
    """The one line with which a file is refused."""
    path.write_bytes(raw)
    with pytest.raises(ArtifactError) as caught:
        map_model(path, spec)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


HEADER_FIELDS = {
    "magic number": (0, b"PPLXINT4"),
    "version": (8, struct.pack("<I", 2)),
    "byte order": (12, struct.pack(">I", 0x01020304)),
    "header size": (16, struct.pack("<I", 0)),
    "number of tensors": (20, struct.pack("<I", 0xFFFFFFFF)),
    "file size": (24, struct.pack("<Q", 2**64 - 1)),
    "directory offset": (32, struct.pack("<Q", 2**64 - 64)),
    "number of layers": (40, struct.pack("<I", 0xFFFFFFFF)),
    "hidden size": (44, struct.pack("<I", 0)),
    "number of heads": (48, struct.pack("<I", 1 << 31)),
    "number of key heads": (52, struct.pack("<I", 0)),
    "head size": (56, struct.pack("<I", 7)),
    "intermediate size": (60, struct.pack("<I", 0xFFFFFFF0)),
    "vocabulary size": (64, struct.pack("<I", 0x80000000)),
    "maximum tokens": (68, struct.pack("<I", 0)),
    "eps of the head norms": (72, struct.pack("<f", float("nan"))),
    "eps of the stream norms": (76, struct.pack("<f", -1)),
    "its header has unknown fields": (80, b"\1"),
}


@pytest.mark.parametrize("field", HEADER_FIELDS)
def test_each_field_of_the_header_is_checked(
    tiny_file: tuple[Path, ModelSpec, RandomWeights], tmp_path: Path, field: str
):
    path, spec, _ = tiny_file
    raw, (at, value) = bytearray(path.read_bytes()), HEADER_FIELDS[field]
    raw[at : at + len(value)] = value
    assert field in refusal(bytes(raw), spec, tmp_path / "bad")


@given(st.data())
@settings(max_examples=150)
def test_any_other_header_or_directory_is_refused(
    tiny_file: tuple[Path, ModelSpec, RandomWeights], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    path, spec, _ = tiny_file
    raw = bytearray(path.read_bytes())
    end = HEADER_BYTES + ENTRY_BYTES * len(directory(spec))
    start = data.draw(st.integers(0, end - 8))
    raw[start : start + 8] = data.draw(
        st.binary(min_size=8, max_size=8).filter(lambda value: value != raw[start : start + 8])
    )
    assert "convert the model again" in refusal(bytes(raw), spec, tmp_path_factory.getbasetemp() / "bad")


@pytest.mark.parametrize("size", [0, 1, 127, 128, 1000, -1])
def test_a_truncated_file_is_refused(tiny_file: tuple[Path, ModelSpec, RandomWeights], tmp_path: Path, size: int):
    path, spec, _ = tiny_file
    message = refusal(path.read_bytes()[:size], spec, tmp_path / "bad")
    assert "truncated" in message or "bytes, but this model needs" in message


def test_a_longer_file_and_the_file_of_another_model_are_refused(
    tiny_file: tuple[Path, ModelSpec, RandomWeights], tmp_path: Path
):
    path, spec, _ = tiny_file
    assert "but this model needs" in refusal(path.read_bytes() + bytes(64), spec, tmp_path / "bad")
    assert "hidden size" in refusal(path.read_bytes(), spec_of("4b", num_hidden_layers=2), tmp_path / "bad")
    with pytest.raises(ArtifactError, match="cannot be read"):
        map_model(tmp_path / "nowhere", spec)


def test_the_file_of_another_number_of_bits_is_refused(
    tiny_file: tuple[Path, ModelSpec, RandomWeights], tmp_path: Path
):
    path, spec, _ = tiny_file
    with pytest.raises(ArtifactError, match="magic number is b'PPLXINT8', but this model needs b'PPLXINT4'"):
        map_model(path, spec, 4)
    assert "magic number" in refusal(model_image(spec, FloatWeights(spec), 4)[:], spec, tmp_path / "bad")


def test_weights_of_the_wrong_size_are_an_error(tmp_path: Path):
    spec = spec_of()
    weights = RandomWeights(spec)
    codes, scales = weights.tensors["embed_tokens.weight"]
    weights.tensors["embed_tokens.weight"] = codes[:-1], scales
    with (tmp_path / "model").open("wb") as file, pytest.raises(ValueError, match="TABLE of layer 0 has"):
        native_file.write_model(file, spec, weights)
