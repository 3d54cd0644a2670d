"""What a text is known by: everything that its vectors and their places depend on."""

import hashlib

from pplx_search.documents import Document


def content_digest(document: Document) -> bytes:
    """SHA-256 over a document's text, the pages that it is on, and how headings are told in it.

    How the text is cut into pieces does not matter where the page stays the same; nor do name, title and metadata.
    """
    text, pages = hashlib.sha256(), hashlib.sha256()
    position, page = 0, None
    for piece in document.pieces:
        if piece.text and piece.page != page:
            page = piece.page
            pages.update(f"{position} {page};".encode())
        position += len(piece.text)
        text.update(piece.text.encode("utf-8", "surrogatepass"))
    parts = [document.text_format.encode(), text.hexdigest().encode(), pages.hexdigest().encode()]
    return hashlib.sha256(b" ".join(parts)).digest()
