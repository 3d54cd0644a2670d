"""The digest that identifies a text. It covers everything that the vectors and positions of its chunks depend on."""

import hashlib

from pplx_search.documents import Document


def text_digest(document: Document) -> bytes:
    """Return the SHA-256 of a document's text, page breaks and markup.

    The split of a page into pieces does not matter, and neither do name, title and metadata.
    """
    text, pages = hashlib.sha256(), hashlib.sha256()
    position, page = 0, None
    for piece in document.pieces:
        if piece.text and piece.page != page:
            page = piece.page
            pages.update(f"{position} {page};".encode())
        position += len(piece.text)
        text.update(piece.text.encode("utf-8", "surrogatepass"))
    parts = [document.markup.encode(), text.hexdigest().encode(), pages.hexdigest().encode()]
    return hashlib.sha256(b" ".join(parts)).digest()
