"""What a file holds once it is read: documents of plain text, with the places that people know them by.

Offsets are characters of the canonical text, which is all pieces of a document one after the other.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pplx_edge import StreamOptions

_TEXT_FORMAT = StreamOptions().format


@dataclass(frozen=True, slots=True)
class Piece:
    """Some of a document's text, and the page (or slide, or sheet) that it is on, from 1; None where there are none."""

    text: str
    page: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text that is found and shown as one.

    `pieces` may be iterated any number of times; those of a long document are read from a file each time.

    `part` tells the documents of one file apart (a message of a mailbox); it is "" for a file that is one document, and
    stays the same as long as the part does. `kind` is what the file is (`pdf`, `markdown`, `mail`, …), `text_format`
    how headings are told in the text (`markdown`, `text` or `code`). `metadata` holds what the file says of itself, of
    it `author`, `date` (ISO 8601), `from`, `to`. `remarks` say in words what could not be read.
    """

    kind: str
    pieces: Iterable[Piece]
    part: str = ""
    title: str = ""
    text_format: str = _TEXT_FORMAT
    metadata: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The canonical text."""
        return "".join(piece.text for piece in self.pieces)
