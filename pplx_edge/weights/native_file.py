"""The weight file of the native formats: a safetensors file whose tensors lie as the CPU kernels read them.

A projection `[N, K]` is stored in panels of 16 output channels, int8 `[N/16, K/4, 16, 4]`: the 64 bytes of a step are
four neighboring inputs of 16 channels, which is one operand of the dot-product instructions of every processor. Sizes
that are no multiples are padded with zeros: N to 16, K to 64. Each projection has a float32 scale and an int32 sum of
its codes per output channel. All tensors begin at multiples of 64 bytes, so the file is mapped and used in place.

Nothing in the file is trusted: names, types, shapes and places are compared with what config.json implies.
"""

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pplx_edge.errors import ArtifactError
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.safetensors import StoredTensor, n_bytes, read_header

TABLE, FINAL_NORM = "embed_tokens.weight", "norm.weight"
COS, SIN = "rotary.cos", "rotary.sin"
ALIGNMENT = 64
_PANEL, _QUAD, _STEP = 16, 4, 64  # channels of a panel, inputs that lie side by side, and the multiple of K
_NUMPY = {"I8": np.int8, "I32": np.int32, "F32": np.float32}

Layout = Mapping[str, tuple[str, tuple[int, ...]]]


def scales_of(name: str) -> str:
    """Return the name of the scales of a matrix."""
    return f"{name}.scales"


def sums_of(name: str) -> str:
    """Return the name of the sums over the codes of each output channel of a projection."""
    return f"{name}.sums"


def file_layout(spec: ModelSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type and the padded shape of each tensor of a model, in the order in which the kernels expect them."""
    half = (spec.max_tokens * spec.head_dim // 2,)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        TABLE: ("I8", (spec.vocab_size, _up(spec.hidden_size, ALIGNMENT))),
        scales_of(TABLE): ("F32", (_up(spec.vocab_size, _PANEL),)),
        COS: ("F32", (_up(half[0], _PANEL),)),
        SIN: ("F32", (_up(half[0], _PANEL),)),
    }
    for index in range(spec.n_layers):
        for name, shape in spec.layer_shapes().items():
            full_name, padded = f"layers.{index}.{name}", _up(shape[0], _PANEL)
            if len(shape) == 1:
                tensors[full_name] = ("F32", (padded,))
                continue
            panels = (padded // _PANEL, _up(shape[1], _STEP) // _QUAD, _PANEL, _QUAD)
            tensors |= {
                full_name: ("I8", panels),
                scales_of(full_name): ("F32", (padded,)),
                sums_of(full_name): ("I32", (padded,)),
            }
    return tensors | {FINAL_NORM: ("F32", (_up(spec.hidden_size, _PANEL),))}


def projection(name: str, codes: np.ndarray, scales: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and padded values of the three tensors of a projection, int8 `[N, K]` with scales `[N]`."""
    yield name, panels_of(codes)
    yield scales_of(name), padded(scales)
    yield sums_of(name), padded(codes.sum(axis=1, dtype=np.int32))


def panels_of(codes: np.ndarray) -> np.ndarray:
    """Return int8 codes `[N, K]` in panels, int8 `[N/16, K/4, 16, 4]`, padded with zeros."""
    n_out, n_in = codes.shape
    full = np.zeros((_up(n_out, _PANEL), _up(n_in, _STEP)), np.int8)
    full[:n_out, :n_in] = codes
    return np.ascontiguousarray(full.reshape(-1, _PANEL, full.shape[1] // _QUAD, _QUAD).swapaxes(1, 2))


def codes_of(panels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the codes `[N, K]` that `panels_of` has put in panels."""
    return panels.swapaxes(1, 2).reshape(panels.shape[0] * _PANEL, -1)[: shape[0], : shape[1]]


def padded_columns(rows: np.ndarray) -> np.ndarray:
    """Return rows of the embedding table, int8 `[R, D]`, with columns of zeros up to a multiple of 64."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % ALIGNMENT)))


def padded(values: np.ndarray) -> np.ndarray:
    """Return the values as one row, padded with zeros to whole multiples of 64 bytes."""
    flat = values.reshape(-1)
    return np.pad(flat, (0, -len(flat) % (ALIGNMENT // flat.itemsize)))


@dataclass(frozen=True, slots=True, eq=False)
class NativeWeights:
    """The tensors of a model as the kernels read them: mapped from a file, or in memory, in the order of the layout."""

    spec: ModelSpec
    tensors: Mapping[str, np.ndarray]

    @classmethod
    def open(cls, path: Path, spec: ModelSpec) -> "NativeWeights":
        """Map a weight file.

        Raises CheckpointError if it is not a complete safetensors file, and ArtifactError, naming the tensor, if one is
        missing, unknown, misplaced, or of another type or shape than the model needs.
        """
        stored, expected = read_header(path, tuple(_NUMPY)), file_layout(spec)
        _require_match(path, stored, expected)
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: cannot be mapped ({error})") from error
        if len(mapped) < max(tensor.stop for tensor in stored.values()):
            raise ArtifactError(f"{path}: was truncated while it was opened; convert the model again")
        return cls(
            spec,
            {
                name: np.frombuffer(mapped, _NUMPY[dtype], np.prod(shape, dtype=int), stored[name].start).reshape(shape)
                for name, (dtype, shape) in expected.items()
            },
        )

    @classmethod
    def empty(cls, spec: ModelSpec) -> "NativeWeights":
        """Return tensors in memory, all zeros, to be filled. The memory of a tensor is used once it is written."""
        layout = file_layout(spec)
        memory = mmap.mmap(-1, sum(n_bytes(dtype, shape) for dtype, shape in layout.values()))
        tensors, start = {}, 0
        for name, (dtype, shape) in layout.items():
            count = np.prod(shape, dtype=int)
            tensors[name] = np.frombuffer(memory, _NUMPY[dtype], count, start).reshape(shape)
            start += n_bytes(dtype, shape)
        return cls(spec, tensors)


def _require_match(path: Path, stored: Mapping[str, StoredTensor], expected: Layout) -> None:
    if missing := [name for name in expected if name not in stored]:
        raise ArtifactError(f"{path}: tensor {missing[0]} is missing ({len(missing)} of {len(expected)} missing)")
    if extra := [name for name in stored if name not in expected]:
        raise ArtifactError(f"{path}: tensor {extra[0]} is not part of this model ({len(extra)} unknown)")
    for name, (dtype, shape) in expected.items():
        found = stored[name]
        if (found.dtype, found.shape) != (dtype, shape):
            raise ArtifactError(
                f"{path}: tensor {name} is {found.dtype} {list(found.shape)}, config.json implies {dtype} {list(shape)}"
            )
        if found.start % ALIGNMENT:
            raise ArtifactError(f"{path}: tensor {name} begins at byte {found.start:,}, not a multiple of {ALIGNMENT}")


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
