"""Vectors to `.npy` or JSON Lines as they come, in files that appear whole or not at all."""

import io
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.files import replacing_file, storage_errors
from pplx_edge.types import ChunkVector


class VectorWriter(Protocol):
    """Takes the vectors of one text `[D]`, of one document's chunks `[N, D]`, or of one chunk of a stream, in order."""

    def append(self, vectors: list[np.ndarray]) -> None: ...

    def append_chunk(self, document: str, chunk: ChunkVector) -> None: ...


@contextmanager
def open_writer(output: str | None, empty: np.ndarray) -> Iterator[VectorWriter]:
    """The writer of a path's format, or of JSON Lines on stdout for None.

    `empty` is `[0, D]` of the vectors' type, for the header of a file that gets none. When the block ends well the
    file is there, complete; when it raises, nothing is.
    """
    if output is None:
        yield JsonLinesWriter(sys.stdout)
        return
    path = require_output(output)
    with storage_errors(path), replacing_file(path) as partial, partial.open("wb") as file:
        if path.suffix == ".npy":
            npy = NpyWriter(file, empty)
            yield npy
            npy.finish()
        else:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
            yield JsonLinesWriter(text)
            text.flush()
            text.detach()


def require_output(output: str) -> Path:
    """The real path of an output file. Raises InputError for an unknown format or a place that cannot take it."""
    path = Path(os.path.realpath(output))
    if path.suffix not in (".npy", ".jsonl"):
        raise InputError(f"{output}: the name says neither .npy nor .jsonl, the two formats that can be written")
    if not path.parent.is_dir():
        raise InputError(f"{output}: the directory {path.parent} does not exist; create it first")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{output}: exists and is not a plain file; choose another name")
    return path


class NpyWriter:
    """NumPy's format, with the number of rows filled in at the end."""

    def __init__(self, file: IO[bytes], empty: np.ndarray):
        self.file, self.empty, self.n_rows = file, empty, 0
        self.file.write(self._header())

    def append(self, vectors: list[np.ndarray]) -> None:
        for rows in vectors:
            rows = np.atleast_2d(rows)
            self.file.write(np.ascontiguousarray(rows).tobytes())
            self.n_rows += len(rows)

    def append_chunk(self, document: str, chunk: ChunkVector) -> None:
        self.append([chunk.codes])

    def finish(self) -> None:
        self.file.seek(0)
        self.file.write(self._header())

    def _header(self) -> bytes:
        # NumPy pads the header so that the first axis can grow in place.
        shape = (self.n_rows, *self.empty.shape[1:])
        descr = np.lib.format.dtype_to_descr(self.empty.dtype)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
        return header.getvalue()


class JsonLinesWriter:
    """One object a text, `{"index", "embedding"}`, or a document, `{"index", "embeddings"}`."""

    def __init__(self, file: IO[str]):
        self.file, self.index = file, 0

    def append(self, vectors: list[np.ndarray]) -> None:
        for rows in vectors:
            name = "embedding" if rows.ndim == 1 else "embeddings"
            self.file.write(json.dumps({"index": self.index, name: _plain(rows)}) + "\n")
            self.index += 1

    def append_chunk(self, document: str, chunk: ChunkVector) -> None:
        """`{"doc", "chunk", "start", "stop", "line", "page", "heading", "tokens", "codes", "position"}`, at once."""
        fields = {
            "doc": document,
            "chunk": chunk.index,
            "start": chunk.start,
            "stop": chunk.stop,
            "line": chunk.line,
            "page": chunk.page,
            "heading": chunk.heading,
            "tokens": chunk.tokens,
            "codes": _plain(chunk.codes),
            "position": chunk.position,
        }
        self.file.write(json.dumps(fields, ensure_ascii=False) + "\n")
        self.file.flush()


def _plain(values: np.ndarray) -> list[Any]:
    """Nested lists of numbers; floats with the fewest digits that give them back."""
    if values.ndim > 1:
        return [_plain(row) for row in values]
    return [float(str(x)) for x in values] if values.dtype.kind == "f" else values.tolist()
