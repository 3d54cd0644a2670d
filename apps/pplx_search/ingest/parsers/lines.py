"""Line-based files: text, Markdown, code, CSV and JSON Lines. Line numbers are the same as in the file."""

import hashlib
import io
import re
from collections.abc import Iterator

from pplx_search.ingest.decoding import HEAD_BYTES, decoded, encoding_of, require_text
from pplx_search.ingest.failures import ParseFailed
from pplx_search.ingest.kinds import text_format_of
from pplx_search.ingest.opened_file import OpenedFile
from pplx_search.ingest.output import Output

_IN_MEMORY_BYTES = 1 << 20  # longer files are read in blocks
_FEW_NULS, _MAX_NUL_SHARE = 1000, 0.1

_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|$)", re.DOTALL)
_FRONT_FIELD = re.compile(r"^(title|author|date)[ \t]*:[ \t]*(.+)$", re.MULTILINE | re.IGNORECASE)
_FIRST_HEADING = re.compile(r"^#[ \t]+(.+?)[ \t#]*$|^(\S.*)\n=+[ \t]*$", re.MULTILINE)
_ESCAPE = re.compile(r"(?<!\\)((?:\\\\)*)((?:\\u[0-9a-fA-F]{4})+)")
# what may go on in the next block: half an escape, and the first half of a character with what follows it
_ESCAPE_TAIL = re.compile(r"\\+(?:u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?|u[0-9a-fA-F]{0,3})?\Z")


def parse(opened: OpenedFile, output: Output) -> None:
    """Write the text of the file as one document."""
    file = io.BytesIO(opened.content()) if opened.size <= _IN_MEMORY_BYTES else _HashingFile(opened)
    require_text(file.read(HEAD_BYTES))
    encoding = encoding_of(file)
    output.begin(opened.kind, text_format=text_format_of(opened.kind))
    if encoding.remark:
        output.remark(encoding.remark)
    texts = decoded(file, encoding)
    if opened.kind in ("jsonl", "json"):
        texts = _unescaped(texts)
    n_chars = n_nuls = 0
    for i, text in enumerate(texts):
        if i == 0 and opened.kind == "markdown":
            _describe(text[:HEAD_BYTES], output)
        n_chars, n_nuls = n_chars + len(text), n_nuls + text.count("\0")
        if n_nuls > max(_FEW_NULS, n_chars * _MAX_NUL_SHARE):
            raise ParseFailed("binary", f"contains binary data: {n_nuls:,} of {n_chars:,} characters are NUL")
        output.write(text)
    if n_nuls:
        output.remark(f"{n_nuls:,} NUL characters were replaced")
    output.end()
    if isinstance(file, _HashingFile):
        file.note_hash()


class _HashingFile:
    """A file that computes its hash while it is read sequentially, so that the hash matches what is parsed."""

    def __init__(self, opened: OpenedFile):
        self.opened, self.digest, self.n_hashed = opened, hashlib.sha256(), 0

    def seek(self, offset: int, /) -> int:
        if offset == 0:
            self.digest, self.n_hashed = hashlib.sha256(), 0
        return self.opened.file.seek(offset)

    def read(self, size: int = -1, /) -> bytes:
        start = self.opened.file.tell()
        block = self.opened.file.read(size)
        if start == self.n_hashed:
            self.digest.update(block)
            self.n_hashed += len(block)
        return block

    def note_hash(self) -> None:
        if self.n_hashed == self.opened.size:
            self.opened.note_hash(self.digest.hexdigest())


def _describe(beginning: str, output: Output) -> None:
    """Read the title, author and date of a Markdown file from its front matter or first heading."""
    if front := _FRONT_MATTER.match(beginning):
        fields = {key.lower(): value.strip().strip("\"'") for key, value in _FRONT_FIELD.findall(front.group(1))}
        output.title = fields.pop("title", "")
        output.metadata.update(fields)
        beginning = beginning[front.end() :]
    if not output.title and (heading := _FIRST_HEADING.search(beginning)):
        output.title = heading.group(1) or heading.group(2)


def _unescaped(texts: Iterator[str]) -> Iterator[str]:
    r"""Return JSON with escapes such as `\u00fc` replaced by characters, to make them searchable."""
    held = ""
    for text in texts:
        text = held + text
        tail = _ESCAPE_TAIL.search(text, max(0, len(text) - 64))
        held = text[tail.start() :] if tail else ""
        yield _ESCAPE.sub(_characters, text[: len(text) - len(held)])
    yield _ESCAPE.sub(_characters, held)


def _characters(escape: re.Match[str]) -> str:
    codes = [int(digits, 16) for digits in escape.group(2).split("\\u")[1:]]
    if min(codes) < 0x20 or any(chr(code) in '"\\' for code in codes):
        return escape.group()  # must stay escaped in JSON
    raw = b"".join(code.to_bytes(2, "little") for code in codes)
    return escape.group(1) + raw.decode("utf-16-le", "replace")
