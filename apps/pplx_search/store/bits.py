"""The bits file of a generation: the signs of its vectors, in the order in which they came, to be scanned from memory.

    header (64 bytes)   magic, version, generation, epoch, dim, checksum of these
    row 0, row 1, …     dim / 8 bytes each

Derived from the database and never trusted: the database says which rows belong to which chunks, with a checksum for
each run of them, and a file that is missing, short or wrong is made again. Rows are written before the transaction that
names them commits; what a crash leaves behind them is written over. Rows are never changed while anybody may know them:
compaction writes a file of another epoch.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pplx_edge.vectors.codes import packed_signs
from pplx_search.store.errors import translated

_MAGIC, _VERSION = b"PPLXBITS", 1
_HEADER = struct.Struct("<8sIIQI")  # magic, version, generation, epoch, dim; then their checksum
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = 64
PATTERN = "bits-*"


@dataclass(frozen=True, slots=True)
class BitsFile:
    """Where the bits of a generation are, at an epoch."""

    directory: Path
    generation: int
    epoch: int
    dim: int

    @property
    def path(self) -> Path:
        """The file's path: no two epochs share one, so that a reader of the one before is not disturbed."""
        return self.directory / f"bits-{self.generation}-{self.epoch}.bin"

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return row_bytes(self.dim)

    def create(self, rows: Iterable[np.ndarray] = ()) -> None:
        """Makes the file anew, from blocks of rows uint8 `[n, row_bytes]`; it is there whole or not at all."""
        partial = self.path.with_suffix(".partial")
        with translated(self.path):
            with partial.open("wb") as file:
                file.write(self._header())
                for block in rows:
                    file.write(np.ascontiguousarray(block).data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)

    def write(self, slot: int, rows: np.ndarray) -> None:
        """Writes rows uint8 `[n, row_bytes]` from a slot on. Raises StorageError when the disk does not take them."""
        with translated(self.path):
            file = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                data, offset = np.ascontiguousarray(rows).data.cast("B"), HEADER_BYTES + slot * self.row_bytes
                while data:
                    written = os.pwrite(file, data, offset)
                    data, offset = data[written:], offset + written
            finally:
                os.close(file)

    def map(self, n_rows: int) -> np.ndarray | None:
        """The first rows, uint8 `[n_rows, row_bytes]`, mapped; None when the file is not there, not ours, or short."""
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                needed = HEADER_BYTES + n_rows * self.row_bytes
                if size < needed or file.read(HEADER_BYTES) != self._header():
                    return None
                mapped = mmap.mmap(file.fileno(), needed, access=mmap.ACCESS_READ)
        except OSError:
            return None
        return np.frombuffer(mapped, np.uint8, offset=HEADER_BYTES).reshape(n_rows, self.row_bytes)

    def remove(self) -> None:
        """Deletes the file; readers that have mapped it keep what they have."""
        self.path.unlink(missing_ok=True)

    def _header(self) -> bytes:
        fields = _HEADER.pack(_MAGIC, _VERSION, self.generation, self.epoch, self.dim)
        return (fields + _CHECKSUM.pack(zlib.crc32(fields))).ljust(HEADER_BYTES, b"\0")


def row_bytes(dim: int) -> int:
    """Bytes that the bits of a vector take: whole words of eight bytes, so that rows can be compared by words."""
    return -(-dim // 64) * 8


def signs(codes: np.ndarray) -> np.ndarray:
    """Rows for the file of int8 codes `[N, D]`: their signs, and zeros up to whole words, uint8 `[N, row_bytes]`."""
    rows = np.zeros((len(codes), row_bytes(codes.shape[1])), np.uint8)
    packed = packed_signs(codes)
    rows[:, : packed.shape[1]] = packed
    return rows


def checksum(rows: np.ndarray, before: int = 0) -> int:
    """Of rows, going on from the checksum of those before them."""
    return zlib.crc32(np.ascontiguousarray(rows).data, before)


def remove_others(directory: Path, keep: Iterable[BitsFile]) -> list[Path]:
    """Deletes bits files that belong to no generation any more, and halves of ones; returns them."""
    kept = {file.path for file in keep}
    others = [path for path in directory.glob(PATTERN) if path not in kept]
    for path in others:
        path.unlink(missing_ok=True)
    return others


def in_blocks(rows: np.ndarray, block: int = 1 << 16) -> Iterator[np.ndarray]:
    """Rows, some at a time."""
    for start in range(0, len(rows), block):
        yield rows[start : start + block]
