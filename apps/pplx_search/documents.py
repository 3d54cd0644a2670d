"""Documents: the plain text of a file after parsing, with page numbers and metadata.

Offsets count characters of the canonical text, which is the concatenation of all pieces of a document.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pplx_edge import StreamOptions

_TEXT_FORMAT = StreamOptions().markup


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a document's text, with its 1-based page (or slide, or sheet); None if the document has no pages."""

    text: str
    page: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The unit that is indexed and shown as one search result.

    `pieces` can be iterated repeatedly; those of a long document are read from a file each time.

    `part` identifies a document within its file, such as a message in a mailbox, and does not change between updates.
    It is "" if the file is a single document. `kind` is the file type (`pdf`, `markdown`, `mail`, …), and `text_format`
    is the markup that determines headings (`markdown`, `text` or `code`). `metadata` contains the file's own metadata,
    such as `author`, `date` (ISO 8601), `from` and `to`. `remarks` describe what could not be read.
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
