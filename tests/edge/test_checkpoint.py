import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    SEP,
    random_weights,
    save_tensors,
    tiny_config,
    write_checkpoint,
    write_json,
    write_weights,
)
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from pplx_edge.errors import CheckpointError, EdgeError, InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.checkpoint import Checkpoint, weight_files

SPEC = ModelSpec.from_config(tiny_config(num_hidden_layers=1))
FIRST, LAST = "embed_tokens.weight", "norm.weight"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
INDEX = "model.safetensors.index.json"


def stock_values(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file as float32, read by safetensors itself and widened by torch."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).float().numpy() for name in file.keys()}  # noqa: SIM118


def stock_refuses(path: Path) -> bool:
    try:
        with safe_open(path, framework="np"):
            return False
    except SafetensorError:
        return True


def safetensors_bytes(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def parsed(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype == np.float32 and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one layer: read only."""
    return write_checkpoint(tmp_path_factory.mktemp("small") / "one", tiny_config(num_hidden_layers=1))


@pytest.fixture(scope="module")
def content(small: Path) -> bytes:
    return (small / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose model.safetensors each example overwrites."""
    directory = tmp_path_factory.mktemp("scratch")
    write_json(directory / "config.json", tiny_config(num_hidden_layers=1))
    return directory


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes a model.safetensors of the given bytes beside a good config.json; returns the directory."""

    def write(content: bytes) -> Path:
        write_json(tmp_path / "config.json", tiny_config(num_hidden_layers=1))
        (tmp_path / "model.safetensors").write_bytes(content)
        return tmp_path

    return write


def refused(directory: Path, *said: str) -> str:
    """The message of the CheckpointError, without the directory, which is named after its test."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    message = str(caught.value)
    assert "\n" not in message
    assert str(directory) in message
    message = message.replace(str(directory), "")
    for word in said:
        assert word in message
    return message


# Values


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_values_are_those_of_safetensors_own_reader(dtype: str, n_shards: int, prefix: str, make_checkpoint):
    directory = make_checkpoint(model="4b", dtype=dtype, n_shards=n_shards, prefix=prefix)
    checkpoint = Checkpoint.open(directory)
    expected = {}
    for path in sorted(directory.glob("*.safetensors")):
        expected |= stock_values(path)
    assert len(expected) == len(checkpoint.spec.tensor_shapes()) == 35
    for name, values in expected.items():
        assert same_bits(checkpoint.read(name.removeprefix(prefix)), values)
    assert checkpoint.files == sorted(directory.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_extreme_values_survive(dtype: str, tmp_path: Path):
    weights = random_weights(SPEC)
    largest = {"F32": 3.4e38, "F16": 65504, "BF16": 3.38e38}[dtype]
    least = {"F32": 1e-45, "F16": 6e-8, "BF16": 1e-40}[dtype]  # subnormal
    weights[FIRST][0, :6] = [0.0, -0.0, least, -least, largest, -largest]
    write_weights(tmp_path, weights, dtype)
    read = Checkpoint.open(tmp_path, SPEC).read(FIRST)
    assert same_bits(read, stock_values(tmp_path / "model.safetensors")[FIRST])
    assert np.signbit(read[0, 1])
    assert (read[0, 2:] != 0).all()


def test_every_bf16_number_is_widened_exactly(tmp_path: Path):
    import torch

    bits = np.arange(1 << 16, dtype=np.uint16)
    stored = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    bits = bits[torch.isfinite(stored).numpy()]
    config = tiny_config(num_hidden_layers=1, hidden_size=128, vocab_size=len(bits) // 128)
    spec = ModelSpec.from_config(config)
    header, data = bf16_file(spec, bits)
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, data))
    assert same_bits(Checkpoint.open(tmp_path, spec).read(FIRST), stock_values(tmp_path / "model.safetensors")[FIRST])


def bf16_file(spec: ModelSpec, embedding: np.ndarray) -> tuple[dict[str, Any], bytes]:
    """Header and data where the embedding has the given bits and all else is zero."""
    header = layout(spec, "BF16")
    total = max(entry["data_offsets"][1] for entry in header.values())
    return header, embedding.tobytes().ljust(total, b"\0")


def layout(spec: ModelSpec, dtype: str) -> dict[str, Any]:
    """Header entries of all tensors, side by side."""
    header, position = {}, 0
    for name, shape in spec.tensor_shapes().items():
        stop = position + int(np.prod(shape)) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    return header


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_blocks_and_rows_are_slices_of_the_whole(dtype: str, make_checkpoint):
    checkpoint = Checkpoint.open(make_checkpoint(dtype=dtype))
    whole = checkpoint.read(FIRST)
    for start, stop in ((0, 0), (0, 1), (3, 9), (len(whole) - 1, len(whole)), (0, len(whole))):
        assert same_bits(checkpoint.read_block(FIRST, start, stop), whole[start:stop])
    for rows in ([], [0], [5, 5, 399, 0, 5]):
        assert same_bits(checkpoint.read_rows(FIRST, np.array(rows, np.int64)), whole[np.array(rows, np.int64)])


@pytest.mark.parametrize("rows", [[400], [0, 399, 400], [-1], [10**9], [-(10**9)]])
def test_a_row_outside_the_matrix_is_refused(rows: list[int], tiny_dir: Path):
    checkpoint = Checkpoint.open(tiny_dir)
    with pytest.raises(InputError, match=r"embed_tokens\.weight has 400 rows"):
        checkpoint.read_rows(FIRST, np.array(rows))
    with pytest.raises(InputError, match=r"embed_tokens\.weight has 400 rows"):
        checkpoint.read_block(FIRST, min(rows), max(rows) + 1)


def test_a_layer_holds_its_own_tensors(tiny_dir: Path):
    checkpoint = Checkpoint.open(tiny_dir)
    stock = stock_values(tiny_dir / "model.safetensors")
    layer = checkpoint.layer(1)
    assert len(layer) == 11
    for name, values in layer.items():
        assert same_bits(values, stock[f"layers.1.{name}"])


def test_what_is_read_cannot_be_written_through(tiny_dir: Path):
    before = (tiny_dir / "model.safetensors").read_bytes()
    values = Checkpoint.open(tiny_dir).read(LAST)
    if values.flags.writeable:
        values[:] = 0
    assert (tiny_dir / "model.safetensors").read_bytes() == before


def test_unaligned_data_is_read(tmp_path: Path):
    header = layout(SPEC, "F32")
    total = max(entry["data_offsets"][1] for entry in header.values())
    data = np.random.default_rng(0).standard_normal(total // 4).astype(np.float32).tobytes()
    raw = json.dumps(header).encode()
    raw += b" " * (3 - len(raw) % 4)  # data begins at an odd byte
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(raw, data))
    checkpoint = Checkpoint.open(tmp_path, SPEC)
    entry = header["layers.0.mlp.up_proj.weight"]
    start, stop = entry["data_offsets"]
    expected = np.frombuffer(data[start:stop], np.float32).reshape(entry["shape"])
    assert same_bits(checkpoint.read("layers.0.mlp.up_proj.weight"), expected)


# What is there and what is not


def test_the_language_model_head_is_ignored(tmp_path: Path):
    weights = random_weights(SPEC)
    write_weights(tmp_path, weights | {"lm_head.weight": weights[FIRST]})
    Checkpoint.open(tmp_path, SPEC)


@pytest.mark.parametrize("name", [FIRST, "layers.0.self_attn.q_norm.weight", LAST])
def test_a_missing_tensor_is_named(name: str, tmp_path: Path):
    write_checkpoint(tmp_path, tiny_config(num_hidden_layers=1))
    write_weights(tmp_path, {key: values for key, values in random_weights(SPEC).items() if key != name})
    refused(tmp_path, "model.safetensors", name, "missing (1 of 13")


@pytest.mark.parametrize("name", ["layers.1.input_layernorm.weight", "extra", "layers.0.self_attn.q_proj.bias", SEP])
def test_an_extra_tensor_is_named(name: str, tmp_path: Path):
    write_checkpoint(tmp_path, tiny_config(num_hidden_layers=1))
    write_weights(tmp_path, random_weights(SPEC) | {name: np.zeros(64, np.float32)})
    refused(tmp_path, "model.safetensors", name, "not part of this model")


@pytest.mark.parametrize("shape", [(64, 400), (400, 63), (399, 64), (25600,), (1, 400, 64), (0, 64)])
def test_a_misshapen_tensor_is_named(shape: tuple[int, ...], tmp_path: Path):
    write_checkpoint(tmp_path, tiny_config(num_hidden_layers=1))
    write_weights(tmp_path, random_weights(SPEC) | {FIRST: np.zeros(shape, np.float32)})
    refused(tmp_path, FIRST, str(list(shape)), "[400, 64]")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32, np.float64])
def test_a_dtype_that_is_not_read_is_named(dtype: type, tmp_path: Path):
    from safetensors.numpy import save_file

    write_checkpoint(tmp_path, tiny_config(num_hidden_layers=1))
    weights = random_weights(SPEC)
    save_file(weights | {LAST: weights[LAST].astype(dtype)}, tmp_path / "model.safetensors")
    refused(tmp_path, LAST, "supported are F32, F16, BF16")


def test_both_spellings_of_one_tensor_are_refused(tmp_path: Path):
    write_checkpoint(tmp_path, tiny_config(num_hidden_layers=1))
    weights = random_weights(SPEC)
    write_weights(tmp_path, weights | {f"model.{LAST}": weights[LAST]})
    refused(tmp_path, LAST, "is also in")


def test_a_config_of_another_size_is_refused(tmp_path: Path):
    write_checkpoint(tmp_path, tiny_config())
    write_json(tmp_path / "config.json", tiny_config(num_hidden_layers=3))
    refused(tmp_path, "layers.2.input_layernorm.weight is missing (11 of 35 missing)")


def test_nan_and_infinity_are_found_when_read(tmp_path: Path):
    for value in (np.nan, np.inf, -np.inf):
        weights = random_weights(SPEC)
        weights["layers.0.mlp.up_proj.weight"][3, 7] = value
        write_weights(tmp_path, weights)
        checkpoint = Checkpoint.open(tmp_path, SPEC)
        said = r"model\.safetensors: tensor layers\.0\.mlp\.up_proj\.weight contains NaN or infinity"
        with pytest.raises(CheckpointError, match=said):
            checkpoint.read("layers.0.mlp.up_proj.weight")
        with pytest.raises(CheckpointError, match=said):
            checkpoint.read_block("layers.0.mlp.up_proj.weight", 3, 4)
        with pytest.raises(CheckpointError, match=said):
            checkpoint.layer(0)
        assert np.isfinite(checkpoint.read_block("layers.0.mlp.up_proj.weight", 0, 3)).all()


def test_a_pickle_is_never_opened(tmp_path: Path):
    write_checkpoint(tmp_path, tiny_config(num_hidden_layers=1))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Explosive(str(tmp_path / "exploded"))))
    refused(tmp_path, "pytorch_model.bin is a pickle", "convert it to safetensors")
    assert not (tmp_path / "exploded").exists()


class Explosive:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_an_empty_directory_is_refused(tmp_path: Path):
    write_json(tmp_path / "config.json", tiny_config())
    refused(tmp_path, "neither model.safetensors nor model.safetensors.index.json")


def test_what_is_not_a_directory_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(CheckpointError, match=r"config\.json"):
            Checkpoint.open(path)
        with pytest.raises(CheckpointError):
            Checkpoint.open(path, SPEC)


# Shards


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "sharded", tiny_config(num_hidden_layers=1), n_shards=2)


def test_files_come_from_the_index(sharded: Path):
    save_tensors(sharded / "stray.safetensors", {"stray": np.zeros(3, np.float32)})
    names = [path.name for path in weight_files(sharded)]
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    Checkpoint.open(sharded)


def test_a_missing_shard_is_named(sharded: Path):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(sharded, "model-00002-of-00002.safetensors: shard is missing", INDEX)


def test_a_truncated_shard_is_named(sharded: Path):
    path = sharded / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refused(sharded, "model-00002-of-00002.safetensors: truncated", "tensor ")


def test_a_tensor_in_two_shards_is_named(sharded: Path):
    weights = random_weights(SPEC)
    paths = sorted(sharded.glob("model-*.safetensors"))
    save_tensors(paths[1], {name: weights[name] for name in [*stock_values(paths[1]), FIRST]})
    refused(sharded, FIRST, "is also in model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    "shard",
    ["../outside.safetensors", "/etc/hostname", "sub/inside.safetensors", "..", ".", "", "a\0b", 7, None, ["a"]],
)
def test_an_index_cannot_point_outside(shard: Any, sharded: Path):
    save_tensors(sharded.parent / "outside.safetensors", random_weights(SPEC))
    (sharded / "sub").mkdir()
    save_tensors(sharded / "sub" / "inside.safetensors", random_weights(SPEC))
    write_json(sharded / INDEX, {"weight_map": {FIRST: shard}})
    with pytest.raises(CheckpointError, match=r"shard|not a safetensors index"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"{}", b"[]", b"null", b'{"weight_map": 3}', b'{"weight_map": []}', b"\xff", b"[" * 100_000],
    ids=lambda content: repr(content[:20]),
)
def test_a_corrupt_index_is_refused(content: bytes, sharded: Path):
    (sharded / INDEX).write_bytes(content)
    refused(sharded, f"{INDEX}: not a safetensors index")


def test_an_index_of_nothing_is_refused(sharded: Path):
    write_json(sharded / INDEX, {"weight_map": {}})
    refused(sharded, "embed_tokens.weight is missing (13 of 13 missing)")


# Bytes


def cuts(content: bytes) -> Iterator[int]:
    header, _ = parsed(content)
    base = 8 + int.from_bytes(content[:8], "little")
    edges = sorted({base + offset for name in header for offset in header[name]["data_offsets"]})
    yield from (0, 1, 7, 8, 9, base // 2, base - 1, base)
    yield from (edge - 1 for edge in edges[1:])
    yield from edges[1:-1]
    yield from (edge + 1 for edge in edges[:-1])


def test_a_file_cut_anywhere_is_refused(content: bytes, broken):
    positions = list(cuts(content))
    assert len(positions) > 30
    for position in positions:
        directory = broken(content[:position])
        assert stock_refuses(directory / "model.safetensors")
        refused(directory, "model.safetensors", "tensor" if position >= len(content) // 2 else "")


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 100_000_001, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_an_absurd_header_length_is_refused(length: int, content: bytes, broken):
    directory = broken(length.to_bytes(8, "little") + content[8:])
    assert stock_refuses(directory / "model.safetensors")
    refused(directory, "model.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"tensors"',
        b"\xff\xfe",
        b"\0" * 64,
        b"[" * 200_000,
        b'{"a":' * 200_000,
        '{"a": 1}'.encode("utf-16"),
        b'{"norm.weight": null}',
        b'{"norm.weight": []}',
        b'{"norm.weight": {}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256, 512]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": null}}',
        b'{"norm.weight": {"dtype": "F32", "shape": 64, "data_offsets": [0, 256]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": "64", "data_offsets": [0, 256]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [64.5], "data_offsets": [0, 256]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": ["64"], "data_offsets": [0, 256]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 256]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 256]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [-8, -8], "data_offsets": [0, 256]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": ["0", "256"]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [-256, 0]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [256, 0]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [0, 255]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [0, 1e999]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}',
        b'{"norm.weight": {"dtype": "F32", "shape": [' + b"9" * 30 + b'], "data_offsets": [0, 256]}}',
        b'{"norm.weight": {"dtype": 32, "shape": [64], "data_offsets": [0, 256]}}',
        b'{"norm.weight": {"shape": [64], "data_offsets": [0, 256]}}',
    ],
    ids=lambda header: repr(header[:90]),
)
def test_a_corrupt_header_is_refused(header: bytes, broken):
    directory = broken(safetensors_bytes(header, b"\0" * 256))
    assert stock_refuses(directory / "model.safetensors")
    message = refused(directory, "model.safetensors: ")
    assert "corrupt" in message or "needs" in message


def moved(content: bytes, change: Callable[[dict[str, Any]], None], tail: bytes = b"") -> bytes:
    """The file with some header entries changed."""
    header, data = parsed(content)
    change(header)
    return safetensors_bytes(header, data + tail)


def overlap(header: dict[str, Any]) -> None:
    header["layers.0.self_attn.k_proj.weight"]["data_offsets"] = header["layers.0.self_attn.v_proj.weight"][
        "data_offsets"
    ]


def partly_overlap(header: dict[str, Any]) -> None:
    offsets = header["layers.0.self_attn.k_proj.weight"]["data_offsets"]
    header["layers.0.self_attn.k_proj.weight"]["data_offsets"] = [offset - 4 for offset in offsets]


def shift_all(header: dict[str, Any]) -> None:
    for entry in header.values():
        entry["data_offsets"] = [offset + 16 for offset in entry["data_offsets"]]


def test_overlapping_tensors_and_unclaimed_bytes_are_refused(content: bytes, broken):
    for change, tail in ((overlap, b""), (partly_overlap, b""), (shift_all, b"\0" * 16), (len, b"\0")):
        directory = broken(moved(content, change, tail))
        assert stock_refuses(directory / "model.safetensors")
        refused(directory, "model.safetensors: corrupt")


def test_more_bytes_than_a_shape_needs_are_refused(content: bytes, broken):
    def stretch(header: dict[str, Any]) -> None:
        header[LAST]["data_offsets"][1] += 4

    header, data = parsed(content)
    assert header[LAST]["data_offsets"][1] == len(data)
    directory = broken(moved(content, stretch, b"\0" * 4))
    assert stock_refuses(directory / "model.safetensors")
    refused(directory, LAST, "needs 256 bytes, but its header gives 260")


def test_a_name_given_twice_in_a_header_is_refused(content: bytes, broken):
    header, data = parsed(content)
    raw = json.dumps(header)[:-1] + ', "norm.weight": ' + json.dumps(header[FIRST]) + "}"
    refused(broken(safetensors_bytes(raw.encode(), data)), "duplicate name norm.weight")


def test_metadata_is_not_a_tensor(content: bytes, broken):
    directory = broken(moved(content, lambda header: header.update({"__metadata__": {"format": "pt"}})))
    assert same_bits(Checkpoint.open(directory).read(LAST), stock_values(directory / "model.safetensors")[LAST])


def test_a_file_that_shrank_after_opening_is_reported(content: bytes, broken):
    directory = broken(content)
    checkpoint = Checkpoint.open(directory)
    (directory / "model.safetensors").write_bytes(content[:100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*tensor norm\.weight"):
        checkpoint.read(LAST)
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*tensor norm\.weight"):
        checkpoint.read(LAST)


def survives(directory: Path, content: bytes) -> None:
    """Opening and reading gives values or CheckpointError, and never accepts what stock safetensors refuses."""
    path = directory / "model.safetensors"
    path.write_bytes(content)
    try:
        checkpoint = Checkpoint.open(directory, SPEC)
        for name in SPEC.tensor_shapes():
            checkpoint.read(name)
    except CheckpointError:
        return
    assert not stock_refuses(path)


@given(st.binary(max_size=200))
@example(b"\x02\0\0\0\0\0\0\0{}")
def test_any_bytes_are_a_checkpoint_error(scratch: Path, junk: bytes):
    (scratch / "model.safetensors").write_bytes(junk)
    with pytest.raises(CheckpointError):
        Checkpoint.open(scratch)


@given(data=st.data())
def test_a_mutated_header_is_harmless_or_a_checkpoint_error(scratch: Path, small: Path, data: st.DataObject):
    content = (small / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    mutated = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        mutated[data.draw(st.integers(0, 8 + length - 1))] = data.draw(
            st.sampled_from(b'0123456789,:[]{}"-. eE\\') | st.integers(0, 255)
        )
    survives(scratch, bytes(mutated))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 300) | st.integers() | st.floats() | st.sampled_from(["F32", "64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "x"]), inner),
    max_leaves=5,
)


@given(
    name=st.sampled_from([FIRST, LAST, "extra"]),
    field=st.sampled_from(["dtype", "shape", "data_offsets", None]),
    value=JSON | st.lists(st.integers(-300, 300), min_size=2, max_size=2),
)
def test_a_mutated_entry_is_harmless_or_a_checkpoint_error(
    scratch: Path, small: Path, name: str, field: str | None, value: Any
):
    header, data = parsed((small / "model.safetensors").read_bytes())
    if field is None:
        header[name] = value
    else:
        header.setdefault(name, {})[field] = value
    survives(scratch, safetensors_bytes(header, data))


@given(st.integers(0))
def test_a_file_cut_at_any_byte_is_a_checkpoint_error(scratch: Path, small: Path, where: int):
    content = (small / "model.safetensors").read_bytes()
    (scratch / "model.safetensors").write_bytes(content[: where % len(content)])
    with pytest.raises(CheckpointError):
        Checkpoint.open(scratch)


# Memory

READ_ALL = """
import sys
from pplx_edge.weights.checkpoint import Checkpoint

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

before = peak()
checkpoint = Checkpoint.open(sys.argv[1])
for name in checkpoint.spec.tensor_shapes():
    checkpoint.read(name)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_reading_holds_one_tensor_at_a_time(dtype: str, tmp_path: Path):
    sizes = {"hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128}
    config = tiny_config(num_hidden_layers=20, intermediate_size=512, **sizes)
    write_json(tmp_path / "config.json", config)
    header = layout(ModelSpec.from_config(config), dtype)
    size = max(entry["data_offsets"][1] for entry in header.values())
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(safetensors_bytes(header))
        file.truncate(file.tell() + size)  # a sparse file of zeros
    output = subprocess.run([sys.executable, "-c", READ_ALL, tmp_path], capture_output=True, text=True, check=True)
    assert size > 200e6
    assert float(output.stdout) < 40  # MB; the largest tensor is 4 MB


def test_errors_are_of_one_tree():
    assert issubclass(CheckpointError, EdgeError)
