"""Safetensors files that are written in pieces, and read by the `safetensors` library and by this project."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from pplx_edge.weights.safetensors import SafetensorsWriter, read_header

DTYPES = {"F32": np.float32, "F16": np.float16, "U32": np.uint32, "I8": np.int8, "U8": np.uint8}


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=3)),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=25)
def test_a_file_written_in_pieces_is_read_whole(tmp_path_factory: pytest.TempPathFactory, tensors: list) -> None:
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    rng = np.random.default_rng(0)
    values = {
        f"t{i}": np.asarray(rng.integers(0, 100, shape)).astype(DTYPES[kind]) for i, (kind, shape) in enumerate(tensors)
    }
    with SafetensorsWriter(
        path, {f"t{i}": (kind, tuple(shape)) for i, (kind, shape) in enumerate(tensors)}, {}
    ) as file:
        for name in reversed(values):
            half = values[name].size // 2
            file.append(name, values[name].reshape(-1)[:half])
            file.append(name, values[name].reshape(-1)[half:])
    stored = read_header(path)
    with safe_open(path, "np") as opened:
        for name, expected in values.items():
            np.testing.assert_array_equal(opened.get_tensor(name), expected)
            np.testing.assert_array_equal(stored[name].array(), expected)
            assert stored[name].array().dtype == expected.dtype
            if expected.ndim:
                middle = len(expected) // 2
                np.testing.assert_array_equal(stored[name].array(middle, len(expected)), expected[middle:])


def test_a_tensor_that_is_too_short_or_too_long_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="a is shorter than its header says: 12 of 16 bytes"),
        SafetensorsWriter(tmp_path / "x", {"a": ("F32", (4,))}, {}) as file,
    ):
        file.append("a", np.zeros(3, np.float32))
    with (
        pytest.raises(ValueError, match="a is longer than its header says"),
        SafetensorsWriter(tmp_path / "y", {"a": ("U8", (1,))}, {}) as file,
    ):
        file.append("a", np.zeros(3, np.uint8))


def test_a_failure_while_writing_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(KeyError), SafetensorsWriter(tmp_path / "x", {"a": ("F32", (4,))}, {}) as file:
        file.append("b", np.zeros(4, np.float32))
