"""E-mail: single messages (.eml, Apple's .emlx) and mailboxes, with one document per message."""

import email.policy
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from email.message import EmailMessage, Message
from email.parser import BytesParser
from typing import BinaryIO

from pplx_search.ingest import dates
from pplx_search.ingest.decoding import decode
from pplx_search.ingest.failures import ParseFailed
from pplx_search.ingest.opened_file import OpenedFile
from pplx_search.ingest.output import Output, field
from pplx_search.ingest.parsers import html
from pplx_search.ingest.parsers.markdown import MarkdownWriter

_MAX_MESSAGE_BYTES = 64 << 20
_LINE_BYTES = 1 << 16
_SEPARATOR = b"From "
_QUOTED_SEPARATOR = re.compile(rb"^>(?=>*From )", re.MULTILINE)
_EMLX_LENGTH = re.compile(rb"(\d{1,9})[ \t]*\r?\n")
_MAX_PARTS = 1000
_NAMES_SHOWN = 10
# what the standard library's parser of headers fails with, for headers that only attackers and old programs write
_PARSER_FAULTS = (ValueError, LookupError, AttributeError, TypeError, OverflowError, AssertionError, RecursionError)
_PART_CHARS = 200


def parse(opened: OpenedFile, output: Output) -> None:
    if opened.kind == "mbox":
        _parse_mailbox(opened.file, output)
        return
    content = opened.content()
    if opened.path.endswith(".emlx") and (length := _EMLX_LENGTH.match(content)):
        content = content[length.end() :][: int(length[1])]
    _require_message(content)
    _write(content, "", output)


def _require_message(content: bytes) -> None:
    head = content[:_LINE_BYTES].lstrip()
    if not re.match(rb"(?:From |>From |[!-9;-~]+[ \t]*:)", head):
        raise ParseFailed("damaged", "does not begin with a mail header")


def _parse_mailbox(file: BinaryIO, output: Output) -> None:
    """Write each message of a mailbox. Its `part` is its Message-ID, which does not depend on other messages."""
    seen: Counter[str] = Counter()
    for content, n_lost in _messages(file):
        part = _part_of(content)
        seen[part] += 1
        _write(content, part if seen[part] == 1 else f"{part}#{seen[part]}", output, n_lost)


def _messages(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield the messages of a mailbox, each with the number of bytes cut off because it was too long."""
    file.seek(0)
    lines: list[bytes] = []
    n_bytes = n_lost = 0
    after_blank, begun = True, False
    while line := file.readline(_LINE_BYTES):
        if after_blank and line.startswith(_SEPARATOR):
            if begun:
                yield _QUOTED_SEPARATOR.sub(b"", b"".join(lines)), n_lost
            lines, n_bytes, n_lost, begun = [], 0, 0, True
        elif not begun and line.strip():
            raise ParseFailed("damaged", "does not begin with 'From ' like a mailbox")
        elif n_bytes > _MAX_MESSAGE_BYTES:
            n_lost += len(line)
        else:
            lines.append(line)
            n_bytes += len(line)
        after_blank = line in (b"\n", b"\r\n")
    if begun:
        yield _QUOTED_SEPARATOR.sub(b"", b"".join(lines)), n_lost


def _part_of(content: bytes) -> str:
    header = re.split(rb"\r?\n\r?\n", content[:_LINE_BYTES], maxsplit=1)[0]
    match = re.search(rb"^message-id[ \t]*:\s*(\S+)", header, re.MULTILINE | re.IGNORECASE)
    if match and len(match.group(1)) <= _PART_CHARS:
        return field(match.group(1).decode("ascii", "replace"))
    return "sha256:" + hashlib.sha256(content).hexdigest()[:32]


def _write(content: bytes, part: str, output: Output, n_lost: int = 0) -> None:
    output.begin("mail", part=part)
    message = _parsed(content, output)
    headers = _Headers(message)
    output.title = headers["subject"]
    output.metadata.update(headers.metadata())
    writer = MarkdownWriter(output)
    writer.heading(1, headers["subject"])
    for name in ("from", "to", "cc", "date"):
        if value := headers[name]:
            writer.line(f"{name.capitalize()}: {value}")
    if n_lost:
        output.remark(f"the last {n_lost:,} bytes of the message were not read")
    try:
        _write_body(message, writer, output)
    except _PARSER_FAULTS as error:
        output.remark(f"the message was not read to its end: {type(error).__name__}: {error}")
    if broken := sorted({type(defect).__name__ for each in _parts(message) for defect in each.defects}):
        output.remark(f"broken MIME: {', '.join(broken)}")
    writer.finish()
    output.end()


def _parsed(content: bytes, output: Output) -> EmailMessage:
    """Parse a message. If it is nested too deeply, only the headers are read."""
    parser = BytesParser(EmailMessage, policy=email.policy.default)
    try:
        return parser.parsebytes(content)
    except RecursionError:
        output.remark("the parts of the message are nested too deeply and were not read")
        message = parser.parsebytes(content, headersonly=True)
        message.set_payload("")
        return message


class _Headers:
    """Return headers as single lines of text, with invalid parts unchanged."""

    def __init__(self, message: EmailMessage):
        self.message = message

    def __getitem__(self, name: str) -> str:
        try:
            value = str(self.message.get(name, ""))
        except _PARSER_FAULTS:
            raw = {key.lower(): text for key, text in self.message.raw_items()}
            value = str(raw.get(name, ""))
        return field(value.encode("utf-8", "replace").decode())

    def metadata(self) -> dict[str, str]:
        values = {name: self[name] for name in ("from", "to", "cc")}
        return values | {"author": values["from"], "date": dates.from_mail(self["date"])}


def _parts(message: Message) -> Iterator[Message]:
    """Yield a message and its parts, without recursion, and without the parts of attached messages."""
    waiting: list[Message] = [message]
    for _ in range(_MAX_PARTS):
        if not waiting:
            return
        part = waiting.pop()
        yield part
        payload = part.get_payload()
        if isinstance(payload, list) and part.get_content_maintype() == "multipart":
            waiting.extend(reversed([each for each in payload if isinstance(each, Message)]))


def _write_body(message: EmailMessage, writer: MarkdownWriter, output: Output) -> None:
    """Write the plain text of a message, or the text of its HTML. Attachments are listed in a remark."""
    plain, pages, attachments = [], [], []
    for part in _parts(message):
        kind = part.get_content_type()
        if part.get_content_maintype() == "multipart":
            if not part.is_multipart():  # declared as multipart, but without parts
                plain.append(part)
        elif _is_attachment(part) or kind not in ("text/plain", "text/html"):
            attachments.append(_name_of(part))
        else:
            (plain if kind == "text/plain" else pages).append(part)
    if any(_text_of(part, output).strip() for part in plain):
        for part in plain:
            writer.preformatted(_text_of(part, output))
    else:
        for part in pages:
            html.write_body(html.parsed(_text_of(part, output)), writer)
    if attachments:
        more = f" and {len(attachments) - _NAMES_SHOWN:,} more" if len(attachments) > _NAMES_SHOWN else ""
        output.remark(f"attachments not read: {', '.join(attachments[:_NAMES_SHOWN])}{more}")


def _is_attachment(part: Message) -> bool:
    return part.get_content_disposition() == "attachment" or bool(_filename(part))


def _name_of(part: Message) -> str:
    return field(_filename(part)) or f"({part.get_content_type()} without a name)"


def _filename(part: Message) -> str:
    try:
        return part.get_filename() or ""
    except _PARSER_FAULTS:
        return "attachment"


def _text_of(part: Message, output: Output) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    text, remark = decode(payload, str(part.get_content_charset() or ""))
    if remark and remark not in output.remarks:
        output.remark(remark)
    return text
