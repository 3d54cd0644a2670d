"""Tiny sample files, one per kind of parser process, to check that parsing works on this machine."""

import io
import tempfile
import zipfile
from pathlib import Path

SENTENCE = "The lease ends on the last day of May."
_SECONDS = 30.0  # more than enough for a few bytes
_HTML = f"<html><body><h1>Lease</h1><p>{SENTENCE}</p></body></html>"
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_DOCX = f"<w:document xmlns:w='{_WORD}'><w:body><w:p><w:r><w:t>{SENTENCE}</w:t></w:r></w:p></w:body></w:document>"
_PAGE = f"BT /F 12 Tf 20 50 Td ({SENTENCE}) Tj ET"
_PDF_OBJECTS = (
    "<< /Type /Catalog /Pages 2 0 R >>",
    "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
    "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 100] /Contents 4 0 R /Resources << /Font << /F 5 0 R >> >> >>",
    f"<< /Length {len(_PAGE)} >>\nstream\n{_PAGE}\nendstream",
    "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
)


def unread_kinds() -> dict[str, str]:
    """Return the reason for each sample, by suffix, that the reader fails to read correctly.

    Raises EdgeError if no parser process can be started.
    """
    from pplx_search.ingest.reading import Reader, ReadFailed, ReadLimits

    failed = {}
    with tempfile.TemporaryDirectory(prefix="pplx-search-") as folder, Reader(ReadLimits(seconds=_SECONDS)) as reader:
        for suffix, content in samples().items():
            path = Path(folder, f"sample.{suffix}")
            path.write_bytes(content)
            try:
                with reader.read(path) as read:
                    text = "".join(document.text for document in read.documents)
                if SENTENCE not in text:
                    failed[suffix] = f"read as {text[:60]!r}"
            except ReadFailed as error:
                failed[suffix] = error.message
    return failed


def samples() -> dict[str, bytes]:
    """Return the content of each sample file, all of which say `SENTENCE`, by suffix."""
    return {"txt": SENTENCE.encode(), "html": _HTML.encode(), "docx": _docx(), "pdf": _pdf()}


def _docx() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", _DOCX)
    return file.getvalue()


def _pdf() -> bytes:
    content, places = "%PDF-1.4\n", []
    for number, body in enumerate(_PDF_OBJECTS, start=1):
        places.append(len(content))
        content += f"{number} 0 obj\n{body}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(places) + 1
    trailer = f"trailer << /Root 1 0 R /Size {size} >>\nstartxref\n{len(content)}\n%%EOF"
    return f"{content}xref\n0 {size}\n0000000000 65535 f \n{table}{trailer}".encode()
