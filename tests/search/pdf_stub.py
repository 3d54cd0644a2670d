"""The parser of PDFs, but for files that say how it should misbehave: see MISBEHAVING in hostile_files.py."""

import io

import stub_parsers
from hostile_files import STUB_PDF

from pplx_search.ingest.opened_file import OpenedFile
from pplx_search.ingest.output import Output
from pplx_search.ingest.parsers import pdf


class _Order:
    """An opened file of nothing but the order."""

    def __init__(self, order: bytes):
        self._order, self.file = order, io.BytesIO(order)

    def content(self) -> bytes:
        return self._order


def parse(opened: OpenedFile, output: Output) -> None:
    opened.file.seek(0)
    if opened.file.read(len(STUB_PDF)) == STUB_PDF:
        stub_parsers.parse(_Order(opened.file.read()), output)  # type: ignore[arg-type]
    else:
        pdf.parse(opened, output)
