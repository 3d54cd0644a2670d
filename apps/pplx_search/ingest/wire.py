"""The protocol between parent and child process: a four-byte length and a JSON message, both limited in size.

The child sends `ready` once. The parent then sends one request per file, and the child answers with any number of
documents (`document`, its `text` messages in order, `end`), followed by `done` or `failed`. Answers are not trusted,
because a malicious file may have taken over the child. They are validated here to contain only text and numbers.
"""

import json
import struct
from collections.abc import Callable
from typing import Any

MAX_MESSAGE = 4 << 20  # bytes
TEXT_CHARS = 1 << 16  # per message
MAX_FIELD_CHARS = 4096  # per title or metadata value
MAX_REMARKS = 100

_LENGTH = struct.Struct(">I")
HEADER_BYTES = _LENGTH.size


class BrokenWire(Exception):
    """The received data is not a valid message."""


def pack(message: dict[str, Any]) -> bytes:
    payload = json.dumps(message).encode("ascii")
    return _LENGTH.pack(len(payload)) + payload


def length_of(header: bytes) -> int:
    """Return the length in bytes of the message after a header."""
    (length,) = _LENGTH.unpack(header)
    if length > MAX_MESSAGE:
        raise BrokenWire(f"a message of {length:,} bytes, limit {MAX_MESSAGE:,}")
    return length


def unpack(payload: bytes) -> dict[str, Any]:
    try:
        message = json.loads(payload.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise BrokenWire("a message that is not JSON") from error
    if not isinstance(message, dict):
        raise BrokenWire("a message that is not an object")
    return message


def checked_answer(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message of a child after validating the fields of its `type`, with their types and sizes."""
    fields = _ANSWERS.get(str(message.get("type")))
    if fields is None or message.keys() != fields.keys() | {"type"}:
        raise BrokenWire("a message of unknown type")
    for name, is_right in fields.items():
        if not is_right(message[name]):
            raise BrokenWire(f"{message['type']}: invalid {name}")
    return message


def _is_field(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_FIELD_CHARS and _is_whole(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= TEXT_CHARS and _is_whole(value)


def _is_whole(text: str) -> bool:
    """Return whether a text contains no lone surrogates."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _is_page(value: Any) -> bool:
    return value is None or _is_count(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_metadata(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= MAX_REMARKS and all(_is_field(item) for item in value.values())


def _is_remarks(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_REMARKS and all(_is_field(item) for item in value)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) in (0, 64) and set(value) <= set("0123456789abcdef")


_ANSWERS: dict[str, dict[str, Callable[[Any], bool]]] = {
    "ready": {},
    "document": {"kind": _is_field, "part": _is_field, "text_format": _is_field},
    "text": {"text": _is_text, "page": _is_page},
    "end": {"title": _is_field, "metadata": _is_metadata, "remarks": _is_remarks},
    "done": {"sha256": _is_hash, "size": _is_count, "mtime_ns": _is_count, "changed": lambda x: isinstance(x, bool)},
    "failed": {"code": _is_field, "message": _is_field, "sha256": _is_hash, "changed": lambda x: isinstance(x, bool)},
}
