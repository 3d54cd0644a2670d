"""Word documents: paragraphs, headings by their style, lists, tables, text boxes, and notes and comments at the end."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from pplx_search.ingest.opened_file import OpenedFile
from pplx_search.ingest.output import Output
from pplx_search.ingest.parsers import properties
from pplx_search.ingest.parsers.markdown import MarkdownWriter
from pplx_search.ingest.parsers.tables import TableRows
from pplx_search.ingest.parsers.xml_events import Event
from pplx_search.ingest.parsers.zipped import Archive

_DROPPED = {"del", "moveFrom", "Fallback"}  # deleted text, and fallback copies for old programs
_MARKS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_HEADING_NAME = re.compile(r"heading (\d)$")
_TITLE_NAMES = ("title", "subtitle")
_NO_HEADING = 9
_NOTES = ("footnotes", "endnotes", "comments")
_OUTER = ("header", "footer")
_SEPARATORS = ("separator", "continuationSeparator", "continuationNotice")


def parse(opened: OpenedFile, output: Output) -> None:
    archive = Archive(opened)
    output.begin("docx")
    properties.describe(archive, "docProps/core.xml", output)
    main = archive.main_part("word/document.xml")
    parts = archive.relationships(main).values()
    styles = next((part.target for part in parts if part.kind == "styles" and part.target in archive), "")
    known = read_styles(archive.events(styles)) if styles else {}
    writer = MarkdownWriter(output)
    _Body(writer, known).read(archive.events(main))
    for kind in (*_NOTES, *_OUTER):
        for part in parts:
            if part.kind == kind and part.target in archive:
                _Body(writer, {}).read(archive.events(part.target))
    writer.finish()
    output.end()


@dataclass(slots=True)
class _Style:
    """A paragraph style. `outline` is the 0-based heading level; 9 is no heading, and None inherits it."""

    name: str = ""
    based_on: str = ""
    outline: int | None = None
    is_list: bool = False


def read_styles(events: Iterator[Event]) -> dict[str, _Style]:
    """Return the resolved paragraph styles by id."""
    styles: dict[str, _Style] = {}
    style = _Style()
    for event in events:
        if event.what != "start":
            continue
        if event.name == "style":
            style = styles.setdefault(event.get("styleId"), _Style())
        elif event.name == "name" and not style.name:
            style.name = event.get("val").lower()
        elif event.name == "basedOn":
            style.based_on = event.get("val")
        elif event.name == "outlineLvl":
            style.outline = event.number("val")
        elif event.name == "numPr":
            style.is_list = True
    return {name: _with_inherited(name, styles) for name in styles}


def _with_inherited(name: str, styles: dict[str, _Style]) -> _Style:
    """Return a style with the values that it inherits."""
    whole = _Style(styles[name].name)
    for _ in range(len(styles)):
        if (style := styles.get(name)) is None:
            break
        if whole.outline is None:
            whole.outline = _own_outline(style)
        whole.is_list |= style.is_list
        name = style.based_on
    return whole


def _own_outline(style: _Style) -> int | None:
    if style.outline is not None:
        return style.outline
    if match := _HEADING_NAME.match(style.name):
        return max(0, int(match.group(1)) - 1)
    return _TITLE_NAMES.index(style.name) if style.name in _TITLE_NAMES else None


def _level(outline: int | None) -> int:
    """The heading level, 1 for the highest and 0 for none."""
    return 0 if outline is None or outline >= _NO_HEADING else outline + 1


@dataclass(slots=True)
class _Paragraph:
    text: list[str] = field(default_factory=list)
    level: int = 0
    depth: int | None = None  # list nesting depth


class _Body:
    """Reads the paragraphs of a part. Text boxes come before the paragraph that they are anchored to."""

    def __init__(self, writer: MarkdownWriter, styles: dict[str, _Style]):
        self.writer, self.styles = writer, styles
        self.tables = TableRows(writer)
        self.open: list[_Paragraph] = []
        self.dropped = 0
        self.in_text = self.in_format = False

    def read(self, events: Iterator[Event]) -> None:
        for event in events:
            if event.what == "text":
                if self.in_text and self.open and not self.dropped:
                    self.open[-1].text.append(event.text)
            elif event.what == "start":
                self._start(event)
            else:
                self._end(event.name)

    def _start(self, event: Event) -> None:
        name = event.name
        if name in _DROPPED or (name in ("footnote", "endnote") and event.get("type") in _SEPARATORS):
            self.dropped += 1
        elif name == "p":
            self.open.append(_Paragraph())
        elif name == "t":
            self.in_text = True
        elif name == "pPr":
            self.in_format = True
        elif name == "tr":
            self.tables.start_row()
        elif name == "tc":
            self.tables.start_cell()
        elif self.open:
            self._mark(event, self.open[-1])

    def _mark(self, event: Event, paragraph: _Paragraph) -> None:
        """Handle elements of a paragraph other than text."""
        if self.in_format:
            if event.name == "pStyle":
                style = self.styles.get(event.get("val"), _Style())
                paragraph.level = _level(style.outline)
                paragraph.depth = 0 if style.is_list else None
            elif event.name == "outlineLvl":
                paragraph.level = _level(event.number("val"))
            elif event.name == "ilvl":
                paragraph.depth = event.number("val")
        elif event.name in _MARKS and not self.dropped:
            paragraph.text.append(_MARKS[event.name])

    def _end(self, name: str) -> None:
        if name in _DROPPED:
            self.dropped -= 1
        elif name in ("footnote", "endnote"):
            self.dropped = 0
        elif name == "p" and self.open:
            self._write(self.open.pop())
        elif name == "t":
            self.in_text = False
        elif name == "pPr":
            self.in_format = False
        elif name == "tr":
            self.tables.end_row()
        elif name == "tc":
            self.tables.end_cell()

    def _write(self, paragraph: _Paragraph) -> None:
        text = "".join(paragraph.text)
        if self.tables.in_cell:
            self.tables.add(text)
        elif paragraph.level:
            self.writer.heading(paragraph.level, text)
        elif paragraph.depth is not None:
            self.writer.item(text, paragraph.depth)
        else:
            self.writer.paragraph(text)
