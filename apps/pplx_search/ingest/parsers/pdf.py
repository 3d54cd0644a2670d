"""PDF: the text of each page. Pages with images but without text are listed in a remark."""

import re

import pypdfium2
from pypdfium2.raw import FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY, FPDF_PAGEOBJ_IMAGE

from pplx_search.ingest import dates
from pplx_search.ingest.failures import ParseFailed
from pplx_search.ingest.opened_file import OpenedFile
from pplx_search.ingest.output import Output, field

_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
_HYPHEN = re.compile("[\x02\ufffe\u00ad](?:\r?\n)?")  # what PDFium returns for a hyphenated line break
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufeff\uffff]")
_MAGIC_BYTES = 1024
_RANGES_SHOWN = 20


def parse(opened: OpenedFile, output: Output) -> None:
    opened.file.seek(0)
    if b"%PDF-" not in opened.file.read(_MAGIC_BYTES):
        raise ParseFailed("damaged", "does not start with a PDF header" if opened.size else "the file is empty")
    opened.file.seek(0)
    try:
        document = pypdfium2.PdfDocument(opened.file)
    except pypdfium2.PdfiumError as error:
        raise _failure(error) from error
    output.begin("pdf", text_format="text")
    _describe(document, output)
    without_text, broken, n_texts = [], [], 0
    for i in range(len(document)):
        try:
            text, has_images = _read_page(document, i)
        except pypdfium2.PdfiumError:
            broken.append(i + 1)
            continue
        if text:
            n_texts += 1
            output.write(text + "\n\n", page=i + 1)
        elif has_images:
            without_text.append(i + 1)
    if not n_texts:
        raise _nothing_found(len(document), without_text, broken)
    if without_text:
        output.remark(f"no text layer on page {_ranges(without_text)} of {len(document):,}: images only")
    if broken:
        output.remark(f"damaged pages, not read: page {_ranges(broken)} of {len(document):,}")
    output.end()


def _failure(error: pypdfium2.PdfiumError) -> ParseFailed:
    if error.err_code in (FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY):
        return ParseFailed("encrypted", "a password is needed to read the PDF")
    return ParseFailed("damaged", "the PDF is incomplete or damaged and cannot be opened")


def _nothing_found(n_pages: int, without_text: list[int], broken: list[int]) -> ParseFailed:
    if broken or not n_pages:
        return ParseFailed("damaged", f"none of {n_pages:,} pages could be read")
    one = n_pages == 1
    what = ("a scanned image" if one else "scanned images") if without_text else "empty or drawn"
    pages = f"its only page is {what}" if one else f"all of {n_pages:,} pages are {what}"
    return ParseFailed("no-text", f"has no text layer: {pages}; run OCR on it first")


def _describe(document: pypdfium2.PdfDocument, output: Output) -> None:
    found = document.get_metadata_dict(skip_empty=True)
    output.title = field(found.get("Title", ""))
    output.metadata["author"] = found.get("Author", "")
    output.metadata["date"] = dates.from_pdf(found.get("ModDate", "")) or dates.from_pdf(found.get("CreationDate", ""))


def _read_page(document: pypdfium2.PdfDocument, index: int) -> tuple[str, bool]:
    """Return the text of a page, and whether it has images but no text."""
    page = document[index]
    try:
        text_page = page.get_textpage()
        try:
            text = _tidy(text_page.get_text_range())
        finally:
            text_page.close()
        has_images = not text and any(True for _ in page.get_objects(filter=[FPDF_PAGEOBJ_IMAGE], max_depth=3))
    finally:
        page.close()
    return text, has_images


def _tidy(text: str) -> str:
    text = _HYPHEN.sub("", text).replace("\r\n", "\n").replace("\r", "\n").translate(_LIGATURES)
    return "\n".join(line.rstrip() for line in _CONTROL.sub("", text).split("\n")).strip("\n")


def _ranges(pages: list[int]) -> str:
    """Return page numbers as ranges: `3, 7-9` for [3, 7, 8, 9]."""
    ranges: list[list[int]] = []
    for page in pages:
        if ranges and ranges[-1][1] == page - 1:
            ranges[-1][1] = page
        else:
            ranges.append([page, page])
    shown = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges[:_RANGES_SHOWN]]
    return ", ".join(shown) + (" and more" if len(ranges) > _RANGES_SHOWN else "")
