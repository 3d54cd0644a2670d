"""The embedding table of a Core ML model, memory-mapped from a separate file and looked up on the CPU.

The lookup is not part of the program because the Neural Engine cannot gather from a table of this size: every pass
would start on the CPU, and every function would contain the table. The file is safetensors with one float16 tensor, or
int8 codes with one float32 scale per row.
"""

from pathlib import Path

import numpy as np

from pplx_edge.errors import ArtifactError, CheckpointError, InputError
from pplx_edge.weights.safetensors import read_header

TABLE = "embed_tokens.weight"
CODES, SCALES = "embed_tokens.codes", "embed_tokens.scales"


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
        return {name: stored.array() for name, stored in read_header(path, ("F16", "F32", "I8")).items()}
    except CheckpointError as error:
        raise ArtifactError(f"{error}; not a readable embedding table, convert the model again") from error
