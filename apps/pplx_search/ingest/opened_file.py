"""An open file: its content for parsers, its hash, and whether it changed during reading."""

import hashlib
import os
import stat
from typing import BinaryIO

from pplx_search.ingest.failures import ParseFailed

MAX_HASHED_BYTES = 64 << 20  # for unreadable files: hashing larger ones is slow and of little use
_BLOCK = 1 << 20


class OpenedFile:
    """A regular file, open for reading. Parsers use `file`, or `content` for the whole content of a short file."""

    def __init__(self, path: str, kind: str, max_bytes: int):
        self.path, self.kind = path, kind
        self._sha256 = ""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise ParseFailed("unreadable", _why(error)) from error
        self.file: BinaryIO = os.fdopen(descriptor, "rb")
        self.info = os.fstat(descriptor)
        try:
            self._require_plain(max_bytes)
        except ParseFailed:
            self.close()
            raise

    def _require_plain(self, max_bytes: int) -> None:
        if not stat.S_ISREG(self.info.st_mode):
            raise ParseFailed("unreadable", "not a regular file")
        if self.size > max_bytes:
            raise ParseFailed(
                "too-large", f"has {self.size / 1e6:,.0f} MB, more than the limit of {max_bytes / 1e6:,.0f} MB"
            )

    @property
    def size(self) -> int:
        return self.info.st_size

    def content(self) -> bytes:
        """Return the whole content and record its hash, so that the hash matches what is parsed."""
        self.file.seek(0)
        content = self.file.read(self.size + 1)[: self.size]
        self._sha256 = hashlib.sha256(content).hexdigest()
        return content

    def note_hash(self, sha256: str) -> None:
        """Record the hash computed by a parser that read the whole file, which avoids reading it again."""
        self._sha256 = sha256

    def sha256(self) -> str:
        if not self._sha256:
            digest = hashlib.sha256()
            self.file.seek(0)
            while block := self.file.read(_BLOCK):
                digest.update(block)
            self._sha256 = digest.hexdigest()
        return self._sha256

    def changed(self) -> bool:
        """Return whether the file was replaced or modified since it was opened."""
        try:
            now, there = os.fstat(self.file.fileno()), os.stat(self.path)
        except OSError:
            return True
        return _state(self.info) != _state(now) or _state(now) != _state(there)

    def close(self) -> None:
        self.file.close()


def _state(info: os.stat_result) -> tuple[int, int, int, int]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _why(error: OSError) -> str:
    return error.strerror or str(error)
