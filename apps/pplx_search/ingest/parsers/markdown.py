"""Write structured documents as Markdown: `#` headings, and one line per table row and list item."""

import re

from pplx_search.ingest.output import Output, field

_LOOKS_STRUCTURAL = re.compile(r"^(?=#{1,6}(?:\s|$)|```|~~~)", re.MULTILINE)
_CONTROL = re.compile(r"[\x01-\x08\x0b-\x1f\x7f\ufeff\ufffe\uffff]")
_MAX_LEVEL = 6


class MarkdownWriter:
    """Writes blocks separated by blank lines; rows and list items follow each other directly.

    Text that would look like a heading is escaped.
    """

    def __init__(self, output: Output):
        self.output = output
        self.page: int | None = None
        self.first_heading = ""
        self._last = ""  # the type of the last block; empty at the start

    def heading(self, level: int, text: str) -> None:
        title = field(text)
        if title:
            self.first_heading = self.first_heading or title
            self._block("heading", f"{'#' * max(1, min(level, _MAX_LEVEL))} {title}")

    def paragraph(self, text: str) -> None:
        self._block("paragraph", escaped(tidy(text)))

    def preformatted(self, text: str) -> None:
        """Write text with significant whitespace."""
        self._block("paragraph", escaped(_CONTROL.sub("", text).strip("\n")))

    def line(self, text: str) -> None:
        """Write a line that belongs to the adjacent lines."""
        self._block("line", escaped(one_line(text)))

    def item(self, text: str, depth: int = 0, mark: str = "-") -> None:
        if text := tidy(text):
            indent = "  " * min(depth, 8)
            self._block("item", f"{indent}{mark} " + text.replace("\n", f"\n{indent}  "))

    def row(self, cells: list[str]) -> None:
        """Write a table row, unless all cells are empty."""
        cells = [one_line(cell) for cell in cells]
        while cells and not cells[-1]:
            cells.pop()
        self._block("row", escaped(" | ".join(cells)))

    def _block(self, what: str, text: str) -> None:
        if not text:
            return
        if self._last:
            joined = what == self._last and what in ("row", "item", "line")
            self.output.write("\n" if joined else "\n\n", self.page if joined else self._page_before)
        self._last, self._page_before = what, self.page
        self.output.write(text, self.page)

    def finish(self) -> None:
        """End the last line, and use the first heading as title if the document has none."""
        if self._last:
            self.output.write("\n", self._page_before)
        if not self.output.title:
            self.output.title = self.first_heading


def tidy(text: str) -> str:
    """Return text with whitespace collapsed and stripped per line, and without control characters."""
    lines = (" ".join(line.split()) for line in _CONTROL.sub("", text).split("\n"))
    return "\n".join(lines).strip("\n")


def one_line(text: str) -> str:
    return " ".join(_CONTROL.sub("", text).split())


def escaped(text: str) -> str:
    r"""Return text with headings and fences escaped: `# so` becomes `\# so`."""
    return _LOOKS_STRUCTURAL.sub(r"\\", text) if "#" in text or "```" in text or "~~~" in text else text
