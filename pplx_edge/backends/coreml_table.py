"""The embedding table of a Core ML model, memory-mapped from a separate file and looked up on the CPU.

The lookup is not part of the program because the Neural Engine cannot gather from a table of this size: every pass
would start on the CPU, and every function would contain the table. The file is safetensors with one float16 tensor, or
int8 codes with one float32 scale per row.
"""

import json
from pathlib import Path

import numpy as np

from pplx_edge.errors import ArtifactError, InputError

TABLE = "embed_tokens.weight"
CODES, SCALES = "embed_tokens.codes", "embed_tokens.scales"
_DTYPES = {"F16": np.dtype(np.float16), "I8": np.dtype(np.int8), "F32": np.dtype(np.float32)}

_HEADER_LENGTH_BYTES = 8


class EmbeddingTable:
    """An embedding table that is looked up by token id."""

    def __init__(self, values: np.ndarray, scales: np.ndarray | None = None):
        """Wrap float16 values `[V, D]`, or int8 codes `[V, D]` with float32 `scales` `[V]`."""
        self._values, self._scales = values, scales

    @classmethod
    def open(cls, path: Path, shape: tuple[int, int]) -> "EmbeddingTable":
        """Map the table in a file. Raises ArtifactError if the file contains no table of that shape."""
        tensors = _mapped_tensors(path)
        if TABLE in tensors:
            values, scales = tensors[TABLE], None
        elif CODES in tensors and SCALES in tensors:
            values, scales = tensors[CODES], tensors[SCALES]
        else:
            raise ArtifactError(f"{path}: contains no embedding table; convert the model again")
        if values.shape != shape or (scales is not None and scales.shape != shape[:1]):
            raise ArtifactError(f"{path}: the table is {list(values.shape)}, config.json implies {list(shape)}")
        return cls(values, scales)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Return the embeddings float32 `[T, D]` of ids `[T]`. Raises InputError for an id that is out of range."""
        n_rows = len(self._values)
        if len(ids) and not 0 <= ids.min() <= ids.max() < n_rows:
            raise InputError(
                f"token id {ids.max() if ids.min() >= 0 else ids.min()} is out of range: the table has {n_rows:,} rows"
            )
        rows = self._values[ids].astype(np.float32)
        return rows if self._scales is None else rows * self._scales[ids, None]


def _mapped_tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a file by name as read-only mapped arrays; only the header is read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_HEADER_LENGTH_BYTES), "little")
            header = json.loads(file.read(min(length, path.stat().st_size)))
        header.pop("__metadata__", None)
        base = _HEADER_LENGTH_BYTES + length
        return {
            name: np.memmap(path, _DTYPES[entry["dtype"]], "r", base + entry["data_offsets"][0], tuple(entry["shape"]))
            for name, entry in header.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: not a readable embedding table ({error}); convert the model again") from error
