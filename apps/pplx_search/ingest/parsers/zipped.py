"""Safely open documents that are zip archives of XML.

The number of entries, their declared sizes and the compression ratio are checked before unpacking, and no entry may
unpack to more than its declared size.
"""

import posixpath
import struct
import zipfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from pplx_search.ingest.failures import ParseFailed
from pplx_search.ingest.opened_file import OpenedFile
from pplx_search.ingest.parsers.xml_events import Event, xml_events

_MAX_ENTRIES = 50_000
_MAX_DIRECTORY_BYTES = 16 << 20
_MAX_UNPACKED_BYTES = 2 << 30
_FREE_BYTES = 64 << 20  # may be unpacked regardless of the ratio
_MAX_RATIO = 200
_BLOCK = 1 << 16

_END = struct.Struct("<4s4H2LH")  # end of central directory: signature, disks, entries, size, offset, comment
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR_64 = struct.Struct("<4sLQL")
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED_PACKAGE = "EncryptedPackage".encode("utf-16-le")


class Archive:
    """A document that is a zip archive."""

    def __init__(self, opened: OpenedFile):
        _require_zip(opened)
        try:
            self._zip = zipfile.ZipFile(opened.file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise ParseFailed("damaged", f"the ZIP archive is incomplete or damaged: {error}") from error
        self._entries = {entry.filename: entry for entry in self._zip.infolist()}
        self._n_unpacked = 0
        self._require_sane(opened.size)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def _require_sane(self, size: int) -> None:
        packed = unpacked = 0
        for entry in self._zip.infolist():
            if _leads_outside(entry.filename):
                raise ParseFailed("unsafe", f"contains an entry with the unsafe path {entry.filename[:200]!r}")
            if entry.flag_bits & 1:
                raise ParseFailed("encrypted", "the archive is encrypted")
            if not 0 <= entry.header_offset < size:
                raise ParseFailed("damaged", f"{entry.filename[:200]!r} begins outside the archive")
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ParseFailed("damaged", f"{entry.filename[:200]!r} uses an unsupported compression method")
            packed, unpacked = packed + entry.compress_size, unpacked + entry.file_size
            _require_ratio(entry.compress_size, entry.file_size)
        _require_ratio(packed, unpacked)

    def blocks(self, name: str) -> Iterator[bytes]:
        """Return the content of an entry. Raises ParseFailed if it is missing or exceeds its declared size."""
        if name not in self._entries:
            raise ParseFailed("damaged", f"{name} is missing from the archive")
        entry = self._entries[name]
        try:
            with self._zip.open(entry) as file:
                while block := file.read(_BLOCK):
                    self._n_unpacked += len(block)
                    if self._n_unpacked > _MAX_UNPACKED_BYTES:
                        raise ParseFailed("zip-bomb", f"unpacks to more than {_MAX_UNPACKED_BYTES >> 20:,} MB")
                    yield block
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise ParseFailed("damaged", f"{name}: {error}") from error

    def content(self, name: str) -> bytes:
        return b"".join(self.blocks(name))

    def events(self, name: str) -> Iterator[Event]:
        """Yield the XML events of an entry."""
        return xml_events(self.blocks(name), name)

    def relationships(self, name: str) -> "dict[str, Relationship]":
        """Return the parts that a part of an office document refers to, by relationship id."""
        folder, base = posixpath.split(name)
        source = posixpath.join(folder, "_rels", f"{base}.rels")
        found = {}
        for event in self.events(source) if source in self else ():
            if event.what == "start" and event.name == "Relationship" and event.get("TargetMode") != "External":
                target = posixpath.normpath(posixpath.join("/", folder, event.get("Target"))).lstrip("/")
                found[event.get("Id")] = Relationship(event.get("Type").rsplit("/", 1)[-1], target)
        return found

    def main_part(self, fallback: str) -> str:
        """Return the main part of an office document."""
        for each in self.relationships("").values():
            if each.kind == "officeDocument" and each.target in self:
                return each.target
        return fallback


class Relationship(NamedTuple):
    kind: str
    target: str


def _require_zip(opened: OpenedFile) -> None:
    """Raise ParseFailed if the file is not a zip archive or has too many entries, before listing them."""
    file = opened.file
    file.seek(0)
    head = file.read(len(_OLE))
    if head == _OLE:
        file.seek(0)
        if _ENCRYPTED_PACKAGE in file.read(1 << 20) or _ENCRYPTED_PACKAGE in _tail(file, opened.size, 1 << 20):
            raise ParseFailed("encrypted", "a password is needed to read the document")
        raise ParseFailed("unsupported", "a legacy office document with a wrong extension; save it again")
    if not head.startswith(b"PK"):
        raise ParseFailed("damaged", "is not a ZIP archive" if head else "the file is empty")
    n_entries, n_bytes = _directory_of(file, opened.size)
    if n_entries > _MAX_ENTRIES or n_bytes > _MAX_DIRECTORY_BYTES:
        raise ParseFailed("zip-bomb", f"the archive has {n_entries:,} entries, more than the limit of {_MAX_ENTRIES:,}")
    file.seek(0)


def _directory_of(file: BinaryIO, size: int) -> tuple[int, int]:
    """Return the declared number of entries of an archive, and the size of its directory in bytes."""
    tail = _tail(file, size, _END.size + 0xFFFF)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise ParseFailed("damaged", "the ZIP archive is truncated: its directory is missing")
    _, _, _, _, n_entries, n_bytes, _, _ = _END.unpack_from(tail, at)
    locator = at - _LOCATOR_64.size
    if locator >= 0 and tail[locator : locator + 4] == b"PK\x06\x07":
        _, _, place, _ = _LOCATOR_64.unpack_from(tail, locator)
        file.seek(min(place, size))
        record = file.read(_END_64.size)
        if len(record) == _END_64.size and record.startswith(b"PK\x06\x06"):
            _, _, _, _, _, _, _, n_entries, n_bytes, _ = _END_64.unpack(record)
    return n_entries, n_bytes


def _tail(file: BinaryIO, size: int, n_bytes: int) -> bytes:
    file.seek(max(0, size - n_bytes))
    return file.read(n_bytes)


def _leads_outside(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or name.startswith(("/", "\\")) or (len(parts[0]) == 2 and parts[0][1] == ":")


def _require_ratio(packed: int, unpacked: int) -> None:
    if unpacked > _MAX_UNPACKED_BYTES or unpacked > max(_FREE_BYTES, packed * _MAX_RATIO):
        raise ParseFailed(
            "zip-bomb", f"would unpack {packed:,} bytes to {unpacked:,}, more than {_MAX_RATIO} times as many"
        )
