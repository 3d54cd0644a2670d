"""Decode bytes: byte order marks, UTF-8, UTF-16 without a mark, and guessed legacy encodings, noted in a remark.

Everything works on blocks, so that memory does not depend on the length of the file.
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Protocol

from pplx_search.ingest.failures import ParseFailed
from pplx_search.ingest.guessing import DEFAULT, guess

HEAD_BYTES = 8192
_BLOCK = 1 << 18
_SAMPLE_BYTES = 1 << 14
_MAX_CONTROL_SHARE = 0.05
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_MAGIC = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"GIF8", "an image"),
    (b"\x7fELF", "a program"),
    (b"\xca\xfe\xba\xbe", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"\xd0\xcf\x11\xe0", "an old office document"),
    (b"SQLite format 3", "a database"),
    (b"{\\rtf", "an RTF document"),
)
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
_CONTROL = bytes(set(range(32)) - set(b"\t\n\x0b\f\r\x1b"))


class Readable(Protocol):
    """The file operations that decoding needs."""

    def read(self, size: int = -1, /) -> bytes: ...

    def seek(self, offset: int, /) -> int: ...


@dataclass(frozen=True, slots=True)
class Encoding:
    """The encoding of a file. The byte order mark has `n_mark` bytes. If `mixed`, invalid UTF-8 is read byte by byte as
    windows-1252."""

    name: str
    n_mark: int = 0
    mixed: bool = False
    remark: str = ""


def require_text(head: bytes) -> None:
    """Raise ParseFailed if the start of a file shows that it is not text."""
    for magic, what in _MAGIC:
        if head.startswith(magic):
            raise ParseFailed("binary", f"looks like {what}, not like text")
    if _marked(head) or _looks_like_utf16(head):
        return
    if 0 in head:
        raise ParseFailed("binary", f"contains binary data: a NUL byte at byte {head.index(0):,}")
    if len(head.translate(None, _CONTROL)) < len(head) * (1 - _MAX_CONTROL_SHARE):
        raise ParseFailed("binary", "contains binary data: too many control characters")


def encoding_of(file: Readable, hint: str = "") -> Encoding:
    """Return the encoding of a file. Reads the whole file once if its start is not enough.

    A `hint`, such as a charset declared in the file, is used if the file is not UTF-8 and the hint is known.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    if (marked := _marked(head)) is not None:
        return marked
    if utf16 := _looks_like_utf16(head):
        return Encoding(utf16, remark=f"decoded as {utf16}: there is no byte order mark")
    counts = _Utf8Counts(file)
    if not counts.n_bad:
        return Encoding("utf-8")
    if counts.n_good >= counts.n_bad:
        remark = f"{counts.n_bad:,} bytes that are not UTF-8 were decoded as windows-1252"
        return Encoding("utf-8", mixed=True, remark=remark)
    if hint and (known := _known(hint)):
        return Encoding(known)
    name = guess(counts.sample)
    return Encoding(name, remark=f"decoded as {name}: it is not UTF-8")


def decoded(file: Readable, encoding: Encoding) -> Iterator[str]:
    """Yield the text of a file in blocks, with `\\r\\n`, and `\\r` if there are no others, replaced by `\\n`."""
    file.seek(encoding.n_mark)
    decoder = codecs.getincrementaldecoder(encoding.name)("pplx-mixed" if encoding.mixed else "replace")
    ends = _LineEnds()
    while block := file.read(_BLOCK):
        yield ends.unified(decoder.decode(block), final=False)
    yield ends.unified(decoder.decode(b"", final=True), final=True)


def decode(content: bytes, hint: str = "") -> tuple[str, str]:
    """Decode bytes in memory. Returns the text and a remark on its encoding."""
    file = BytesIO(content)
    encoding = encoding_of(file, hint)
    return "".join(decoded(file, encoding)), encoding.remark


class _LineEnds:
    def __init__(self) -> None:
        self._held, self._only_cr = "", None

    def unified(self, text: str, *, final: bool) -> str:
        if not self._held and "\r" not in text:
            self._only_cr = False if "\n" in text else self._only_cr
            return text
        text = self._held + text
        self._held = ""
        if text.endswith("\r") and not final:
            text, self._held = text[:-1], "\r"
        if self._only_cr is None and ("\r" in text or "\n" in text):
            self._only_cr = "\n" not in text
        text = text.replace("\r\n", "\n")
        return text.replace("\r", "\n") if self._only_cr else text


class _Utf8Counts:
    """UTF-8 statistics of a file: invalid bytes (`n_bad`), valid non-ASCII characters (`n_good`), and lines with
    non-ASCII bytes for guessing the encoding (`sample`)."""

    def __init__(self, file: Readable):
        self.n_bad = self.n_good = 0
        self.sample = b""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="pplx-count")
        file.seek(0)
        block = b" "
        while block:
            block = file.read(_BLOCK)
            text = decoder.decode(block, final=not block)
            if text.isascii():
                continue
            bad = text.count("\udcff")
            self.n_bad += bad
            self.n_good += sum(len(run) for run in _BEYOND_ASCII.findall(text)) - bad
            if bad and len(self.sample) < _SAMPLE_BYTES:
                self.sample += b"\n".join(line for line in block.split(b"\n") if not line.isascii())
        self.sample = self.sample[:_SAMPLE_BYTES]


def _marked(head: bytes) -> Encoding | None:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return Encoding(name, len(mark))
    return None


def _looks_like_utf16(head: bytes) -> str:
    """Return the UTF-16 variant if half of the bytes are NUL, all at even or all at odd positions; otherwise empty."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if len(head) >= 4 and not even and odd * 4 > len(head):
        return "utf-16-le"
    if len(head) >= 4 and not odd and even * 4 > len(head):
        return "utf-16-be"
    return ""


def _known(name: str) -> str:
    """Return the codec name of a charset. Empty if it is unknown or not a text encoding, or if it is UTF-8, which has
    already been ruled out."""
    try:
        codec = codecs.lookup(name.strip().strip("\"'"))
        b"".decode(codec.name)
    except (LookupError, ValueError, TypeError):
        return ""
    return {"iso8859-1": DEFAULT, "ascii": DEFAULT, "utf-8": ""}.get(codec.name, codec.name)


def _as_windows_1252(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode(DEFAULT, "replace"), error.end


def _as_marks(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff" * (error.end - error.start), error.end


codecs.register_error("pplx-mixed", _as_windows_1252)
codecs.register_error("pplx-count", _as_marks)
