"""The embedding table beside a Core ML package: mapped from its file, rows gathered on the host.

The lookup is kept out of the program because a gather from a table of this size runs on no Neural Engine: it would move
the start of every pass to the processor, and each function would carry the table's cost. On the host it is a copy of a
few rows. The file is safetensors: one float16 tensor, or int8 codes with one float32 scale a row.
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
    """Rows of the embedding, by token id."""

    def __init__(self, values: np.ndarray, scales: np.ndarray | None = None):
        """`values` `[V, D]` float16, or int8 codes with `scales` `[V]`."""
        self._values, self._scales = values, scales

    @classmethod
    def open(cls, path: Path, shape: tuple[int, int]) -> "EmbeddingTable":
        """The table in a file, mapped. Raises ArtifactError when it does not hold one of that shape."""
        tensors = _mapped_tensors(path)
        if TABLE in tensors:
            values, scales = tensors[TABLE], None
        elif CODES in tensors and SCALES in tensors:
            values, scales = tensors[CODES], tensors[SCALES]
        else:
            raise ArtifactError(f"{path}: holds no embedding table; convert the model again")
        if values.shape != shape or (scales is not None and scales.shape != shape[:1]):
            raise ArtifactError(f"{path}: the table is {list(values.shape)}, config.json implies {list(shape)}")
        return cls(values, scales)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """The embeddings float32 `[T, D]` of ids `[T]`. Raises InputError for an id that the table does not have."""
        n_rows = len(self._values)
        if len(ids) and not 0 <= ids.min() <= ids.max() < n_rows:
            raise InputError(f"token id {ids.max() if ids.min() >= 0 else ids.min()} is not one of {n_rows:,}")
        rows = self._values[ids].astype(np.float32)
        return rows if self._scales is None else rows * self._scales[ids, None]


def _mapped_tensors(path: Path) -> dict[str, np.ndarray]:
    """Names to read-only arrays over the file; nothing is read but the header."""
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
