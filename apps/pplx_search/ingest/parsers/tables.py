"""Collect table rows as lines of text. Cells can contain nested tables."""

from pplx_search.ingest.parsers.markdown import MarkdownWriter


class TableRows:
    """Collects the text of open cells. A nested table becomes part of its cell's text."""

    def __init__(self, writer: MarkdownWriter):
        self._writer = writer
        self._rows: list[list[str]] = []
        self._cells: list[list[str]] = []

    @property
    def in_cell(self) -> bool:
        return bool(self._cells)

    def add(self, text: str) -> None:
        """Append text to the open cell."""
        if text.strip():
            self._cells[-1].append(text)

    def start_row(self) -> None:
        self._rows.append([])

    def start_cell(self) -> None:
        self._cells.append([])

    def end_cell(self) -> None:
        if self._cells:
            text = " ".join(self._cells.pop())
            if self._rows:
                self._rows[-1].append(text)

    def end_row(self) -> None:
        if not self._rows:
            return
        cells = self._rows.pop()
        if self._cells:
            self.add(" ".join(cells))
        else:
            self._writer.row(cells)
