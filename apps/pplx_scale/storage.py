"""Paths and URIs of corpora, through the file systems of pyarrow: this machine, S3, Google Cloud Storage, HDFS."""

import io
import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pyarrow import ArrowException
from pyarrow import fs as arrow_fs

from pplx_edge.errors import InputError

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """A file or a folder: a file system of pyarrow and a path in it."""

    filesystem: arrow_fs.FileSystem
    path: str

    @classmethod
    def of(cls, location: str | Path) -> "Place":
        """Return the place of a local path, or of a URI such as `s3://bucket/folder`."""
        text = os.fspath(location)
        if "://" not in text:
            return cls(arrow_fs.LocalFileSystem(), os.path.abspath(text))
        try:
            filesystem, path = arrow_fs.FileSystem.from_uri(text)
        except (ArrowException, ValueError, OSError) as error:
            raise InputError(f"{text}: not a location that pyarrow can open ({error})") from error
        return cls(filesystem, path.rstrip("/"))

    def __truediv__(self, name: str) -> "Place":
        return Place(self.filesystem, posixpath.join(self.path, name))

    def __str__(self) -> str:
        scheme = self.filesystem.type_name
        return self.path if scheme == "local" else f"{scheme}:{self.path}"

    def exists(self) -> bool:
        """Return whether a file or folder is here."""
        return self.filesystem.get_file_info(self.path).type != arrow_fs.FileType.NotFound

    def is_file(self) -> bool:
        """Return whether a file is here."""
        return self.filesystem.get_file_info(self.path).type == arrow_fs.FileType.File

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    def files(self) -> list[arrow_fs.FileInfo]:
        """Return the file here, or all files in this folder and its subfolders, in the order of their paths.

        Names that begin with a dot or an underscore are skipped, as other readers of Parquet do.
        """
        info = self.filesystem.get_file_info(self.path)
        if info.type == arrow_fs.FileType.File:
            return [info]
        selector = arrow_fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        found = (each for each in self.filesystem.get_file_info(selector) if each.type == arrow_fs.FileType.File)
        return sorted((each for each in found if not self._is_hidden(each.path)), key=lambda each: each.path)

    def relative(self, path: str) -> str:
        """Return a path below this folder without the folder, or the name of the file if this is one."""
        return posixpath.relpath(path, self.path) if path != self.path else posixpath.basename(path)

    def read_json(self) -> Any:
        """Return the JSON value in this file."""
        with self.filesystem.open_input_stream(self.path) as stream:
            return json.loads(stream.read())

    def write_json(self, value: Any) -> None:
        """Write a JSON value to this file, and create its folder. A local file is replaced atomically."""
        data = (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
        self.filesystem.create_dir(posixpath.dirname(self.path), recursive=True)
        is_local = isinstance(self.filesystem, arrow_fs.LocalFileSystem)
        target = f"{self.path}.part" if is_local else self.path
        with self.filesystem.open_output_stream(target) as stream:
            stream.write(data)
        if is_local:
            self.filesystem.move(target, self.path)

    def _is_hidden(self, path: str) -> bool:
        return any(part.startswith((".", "_")) for part in self.relative(path).split("/"))


def lines_of(place: Place, path: str) -> Iterator[bytes]:
    """Yield the lines of a file without their ends; `.gz`, `.bz2`, `.zst` and `.lz4` files are decompressed."""
    with place.filesystem.open_input_stream(path, compression="detect") as stream:
        for line in io.BufferedReader(cast(io.RawIOBase, stream), _READ_BYTES):
            yield line.removesuffix(b"\n").removesuffix(b"\r")
