"""Read checkpoints tensor by tensor: safetensors in one file or sharded, with or without `model.` in tensor names.

Opening a checkpoint reads only the headers and checks every name, shape, dtype and byte range against the spec, so a
missing, extra, wrongly shaped or truncated tensor is reported immediately, with its file and name. Reading a tensor
maps only its own bytes, so peak memory is the size of the largest tensor, not of the model.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pplx_edge import layout
from pplx_edge.errors import CheckpointError, InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.safetensors import StoredTensor, read_header

_PREFIX = "model."
_IGNORED = {"lm_head.weight"}  # the language model's head, which an encoder does not have
_BLOCK_ROWS = 8192
_DTYPES = ("F32", "F16", "BF16")


class Checkpoint:
    """A directory with config.json and safetensors weights, checked against each other."""

    def __init__(self, directory: Path, spec: ModelSpec, tensors: Mapping[str, StoredTensor]):
        self.directory, self.spec, self.tensors = directory, spec, tensors

    @classmethod
    def open(cls, directory: str | Path, spec: ModelSpec | None = None) -> "Checkpoint":
        """Open the checkpoint in a directory. Raises CheckpointError, or UnsupportedModel for its config.json."""
        directory = Path(directory)
        spec = spec or ModelSpec.from_directory(directory)
        tensors: dict[str, StoredTensor] = {}
        for path in weight_files(directory):
            for name, stored in read_header(path, _DTYPES).items():
                name = name.removeprefix(_PREFIX)
                if name in tensors:
                    raise CheckpointError(f"{path}: tensor {name} is also in {tensors[name].path.name}")
                tensors[name] = stored
        _require_match(tensors, spec, directory)
        return cls(directory, spec, tensors)

    @property
    def files(self) -> list[Path]:
        """The weight files, sorted."""
        return sorted({stored.path for stored in self.tensors.values()})

    def read(self, name: str) -> np.ndarray:
        """Return a tensor as float32; an F32 tensor stays mapped. Raises CheckpointError for NaN or infinity."""
        stored = self.tensors[name]
        return self._checked(name, _as_float32(stored.array()))

    def read_block(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows `[start, stop)` of a matrix as float32. Raises InputError for rows out of range."""
        stored = self.tensors[name]
        n_rows = stored.shape[0]
        if not 0 <= start <= stop <= n_rows:
            raise InputError(f"{stored.path}: tensor {name} has {n_rows:,} rows, [{start}, {stop}) is out of range")
        return self._checked(name, _as_float32(stored.array(start, stop)))

    def row_blocks(self, name: str) -> Iterator[np.ndarray]:
        """Yield a matrix in blocks of rows, float32, so that a large embedding table is never entirely in memory."""
        n_rows = self.spec.tensor_shapes()[name][0]
        for start in range(0, n_rows, _BLOCK_ROWS):
            yield self.read_block(name, start, min(start + _BLOCK_ROWS, n_rows))

    def read_rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return the rows of a matrix with the given indices, an integer array `[R]`: float32 `[R, columns]`."""
        width = self.tensors[name].shape[1]
        found = {row: self.read_block(name, row, row + 1)[0] for row in {int(row) for row in rows}}
        return np.array([found[int(row)] for row in rows], np.float32).reshape(len(rows), width)

    def layer(self, index: int) -> dict[str, np.ndarray]:
        """Return all tensors of one layer as float32, by their name within the layer."""
        return {name: self.read(f"layers.{index}.{name}") for name in self.spec.layer_shapes()}

    def _checked(self, name: str, values: np.ndarray) -> np.ndarray:
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"{self.tensors[name].path}: tensor {name} contains NaN or infinity; download the file again"
            )
        return values


def has_weights(directory: Path) -> bool:
    """Return whether a directory contains safetensors files or an index of them, even if incomplete."""
    return any(directory.glob("*.safetensors")) or any(directory.glob("*.safetensors.index.json"))


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint: the single file, or the shards listed in its index.

    Raises CheckpointError if there is neither, or if a shard is missing.
    """
    index = directory / layout.WEIGHTS_INDEX
    if (directory / layout.WEIGHTS).is_file():
        return [directory / layout.WEIGHTS]
    if not index.is_file():
        found = sorted(path.name for path in directory.glob("*.bin"))
        hint = f" ({found[0]} is a pickle and is never opened: convert it to safetensors)" if found else ""
        raise CheckpointError(f"{directory}: contains neither {layout.WEIGHTS} nor {layout.WEIGHTS_INDEX}{hint}")
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


def _require_match(tensors: Mapping[str, StoredTensor], spec: ModelSpec, directory: Path) -> None:
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


def _as_float32(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)  # bfloat16 is the upper half of float32
    return values.astype(np.float32, copy=False)
