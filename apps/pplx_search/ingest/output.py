"""The output of parsers: one document after the other, with its text in pieces."""

import re
from collections.abc import Callable
from typing import Any

from pplx_search.ingest.failures import ParseFailed
from pplx_search.ingest.wire import MAX_FIELD_CHARS, MAX_REMARKS, TEXT_CHARS

_NOT_TEXT = re.compile(r"[\x00\ud800-\udfff]")  # characters that cannot be stored or tokenized
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u200b\ufeff\ud800-\udfff]+")


class Output:
    """Sends documents as messages through `send`, and fails if a file has too much text."""

    def __init__(self, send: Callable[[dict[str, Any]], None], max_bytes: int):
        self._send, self._max_bytes, self._n_bytes = send, max_bytes, 0
        self._pending: list[str] = []
        self._n_pending, self._page = 0, None
        self._reset()

    def _reset(self) -> None:
        self.title = ""
        self.metadata: dict[str, str] = {}
        self.remarks: list[str] = []

    def begin(self, kind: str, *, part: str = "", text_format: str = "markdown") -> None:
        """Start a document. Its `title`, `metadata` and `remarks` can be set until it ends."""
        self._reset()
        self._send({"type": "document", "kind": kind, "part": field(part), "text_format": text_format})

    def write(self, text: str, page: int | None = None) -> None:
        """Append to the text of the document. NUL characters and lone surrogates become U+FFFD."""
        if not text:
            return
        text = _NOT_TEXT.sub("\ufffd", text)
        self._n_bytes += len(text) if text.isascii() else len(text.encode())
        if self._n_bytes > self._max_bytes:
            raise ParseFailed(
                "too-large", f"contains more than {self._max_bytes >> 20:,} MB of text, which is the limit"
            )
        if page != self._page:
            self._flush()
            self._page = page
        self._pending.append(text)
        self._n_pending += len(text)
        if self._n_pending >= TEXT_CHARS:
            self._flush()

    def remark(self, text: str) -> None:
        """Add a remark on what could not be read. Beyond 100 remarks, only their number is kept."""
        self.remarks.append(text)

    def end(self) -> None:
        """End the document."""
        self._flush()
        remarks = self.remarks[:MAX_REMARKS]
        if len(self.remarks) > MAX_REMARKS:
            remarks[-1] = f"and {len(self.remarks) - MAX_REMARKS + 1:,} more remarks"
        metadata = {key: value for key, raw in self.metadata.items() if (value := field(raw))}
        remarks = [field(remark) for remark in remarks]
        self._send({"type": "end", "title": field(self.title), "metadata": metadata, "remarks": remarks})

    def _flush(self) -> None:
        text = "".join(self._pending)
        self._pending, self._n_pending = [], 0
        for start in range(0, len(text), TEXT_CHARS):
            self._send({"type": "text", "text": text[start : start + TEXT_CHARS], "page": self._page})


def field(text: str) -> str:
    """Return a metadata value as one line without control characters, truncated to 4,096 characters."""
    return " ".join(_CONTROL.sub(" ", text[: 4 * MAX_FIELD_CHARS]).split())[:MAX_FIELD_CHARS]
