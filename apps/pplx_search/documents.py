"""Documents: the plain text of a file after parsing, with page numbers and metadata.

Offsets count characters of the canonical text, which is the concatenation of all pieces of a document. The page of a
piece is 1-based, and stands for a slide or sheet where there are no pages; it is None if the document has neither.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pplx_edge import StreamOptions
from pplx_edge.text.sources import Piece

__all__ = ["Document", "Piece"]

_MARKUP = StreamOptions().markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The unit that is indexed and shown as one search result.

    `pieces` can be iterated repeatedly; those of a long document are read from a file each time.

    `part` identifies a document within its file, such as a message in a mailbox, and does not change between updates.
    It is "" if the file is a single document. `kind` is the file type (`pdf`, `markdown`, `mail`, …), and `markup`
    determines how headings are found (`markdown`, `text` or `code`). `metadata` contains the file's own metadata,
    such as `author`, `date` (ISO 8601), `from` and `to`. `remarks` describe what could not be read.
    """

    kind: str
    pieces: Iterable[Piece]
    part: str = ""
    title: str = ""
    markup: str = _MARKUP
    metadata: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The canonical text."""
        return "".join(piece.text for piece in self.pieces)
