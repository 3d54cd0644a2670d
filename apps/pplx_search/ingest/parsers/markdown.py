"""Structured documents as Markdown: `#` before headings, a line for each row of a table and for each item of a list."""

import re

from pplx_search.ingest.output import Output, field

_LOOKS_STRUCTURAL = re.compile(r"^(?=#{1,6}(?:\s|$)|```|~~~)", re.MULTILINE)
_CONTROL = re.compile(r"[\x01-\x08\x0b-\x1f\x7f\ufeff\ufffe\uffff]")
_MAX_LEVEL = 6


class MarkdownWriter:
    """Writes blocks with a blank line between them; rows and items follow each other without one.

    Text that is no heading is escaped where it would look like one, so that only headings are headings.
    """

    def __init__(self, output: Output):
        self.output = output
        self.page: int | None = None
        self.first_heading = ""
        self._last = ""  # the class of block that was written last; empty at the beginning

    def heading(self, level: int, text: str) -> None:
        title = field(text)
        if title:
            self.first_heading = self.first_heading or title
            self._block("heading", f"{'#' * max(1, min(level, _MAX_LEVEL))} {title}")

    def paragraph(self, text: str) -> None:
        self._block("paragraph", escaped(tidy(text)))

    def preformatted(self, text: str) -> None:
        """Text whose blanks and line ends mean something."""
        self._block("paragraph", escaped(_CONTROL.sub("", text).strip("\n")))

    def line(self, text: str) -> None:
        """A line that belongs to the lines before and after it."""
        self._block("line", escaped(one_line(text)))

    def item(self, text: str, depth: int = 0, mark: str = "-") -> None:
        if text := tidy(text):
            indent = "  " * min(depth, 8)
            self._block("item", f"{indent}{mark} " + text.replace("\n", f"\n{indent}  "))

    def row(self, cells: list[str]) -> None:
        """A row of a table; nothing when all cells are empty."""
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
        """Ends the last line, and takes the first heading as title when the document says none."""
        if self._last:
            self.output.write("\n", self._page_before)
        if not self.output.title:
            self.output.title = self.first_heading


def tidy(text: str) -> str:
    """Lines without blanks at their ends and runs of blanks, without control characters and empty lines around it."""
    lines = (" ".join(line.split()) for line in _CONTROL.sub("", text).split("\n"))
    return "\n".join(lines).strip("\n")


def one_line(text: str) -> str:
    return " ".join(_CONTROL.sub("", text).split())


def escaped(text: str) -> str:
    r"""Text that holds no headings and no fences: `# so` becomes `\# so`."""
    return _LOOKS_STRUCTURAL.sub(r"\\", text) if "#" in text or "```" in text or "~~~" in text else text
