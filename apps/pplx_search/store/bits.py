"""The bits file of a generation: the signs of its vectors, in insertion order, memory-mapped for scanning.

    header (64 bytes)   magic, version, generation, epoch, dim, checksum of these
    row 0, row 1, …     dim / 8 bytes each

A row of the file is called a slot. The file is derived from the database and never trusted: the database assigns slots
to chunks, with a checksum per run, and a missing, truncated or invalid file is rebuilt. Slots are written before the
transaction that refers to them commits, and slots left by a crash are overwritten. A slot never changes while a reader
may use it, because compaction writes a new file for the next epoch.
"""

import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pplx_edge.files import replacing_file
from pplx_search.query.kernels import row_bytes
from pplx_search.store.errors import translated

_MAGIC, _VERSION = b"PPLXBITS", 1
_HEADER = struct.Struct("<8sIIQI")  # magic, version, generation, epoch, dim; then their checksum
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = 64
PATTERN = "bits-*"
_PARTIAL_PATTERN = ".bits-*"  # what `replacing_file` names a file that is being written


@dataclass(frozen=True, slots=True)
class BitsFile:
    """The bits file of a generation at an epoch."""

    directory: Path
    generation: int
    epoch: int
    dim: int

    @property
    def path(self) -> Path:
        """The path of the file. Each epoch has its own, so that readers of the previous one are not affected."""
        return self.directory / f"bits-{self.generation}-{self.epoch}.bin"

    @property
    def row_bytes(self) -> int:
        """The size of a row in bytes."""
        return row_bytes(self.dim)

    def create(self, rows: Iterable[np.ndarray] = ()) -> None:
        """Create the file atomically from blocks of rows, uint8 `[n, row_bytes]`."""
        with translated(self.path), replacing_file(self.path) as partial, partial.open("wb") as file:
            file.write(self._header())
            for block in rows:
                file.write(np.ascontiguousarray(block).data)

    def write(self, slot: int, rows: np.ndarray) -> None:
        """Write rows, uint8 `[n, row_bytes]`, starting at a slot. Raises StorageError if writing fails."""
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
        """Map the first rows, uint8 `[n_rows, row_bytes]`. Returns None if the file is missing or invalid."""
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
        """Delete the file. Readers that have mapped it can still use it."""
        self.path.unlink(missing_ok=True)

    def _header(self) -> bytes:
        fields = _HEADER.pack(_MAGIC, _VERSION, self.generation, self.epoch, self.dim)
        return (fields + _CHECKSUM.pack(zlib.crc32(fields))).ljust(HEADER_BYTES, b"\0")


def checksum(rows: np.ndarray, before: int = 0) -> int:
    """Return the CRC-32 of rows, continuing from the checksum of the rows before them."""
    return zlib.crc32(np.ascontiguousarray(rows).data, before)


def remove_others(directory: Path, keep: Iterable[BitsFile]) -> list[Path]:
    """Delete bits files that belong to no generation, and partial files. Returns their paths."""
    kept = {file.path for file in keep}
    found = [path for pattern in (PATTERN, _PARTIAL_PATTERN) for path in directory.glob(pattern)]
    others = [path for path in found if path not in kept]
    for path in others:
        path.unlink(missing_ok=True)
    return others


def in_blocks(rows: np.ndarray, block: int = 1 << 16) -> Iterator[np.ndarray]:
    """Yield rows in blocks."""
    for start in range(0, len(rows), block):
        yield rows[start : start + block]
