"""OpenDocument texts: headings, paragraphs, lists, tables and notes, without deleted text."""

from collections.abc import Iterator

from pplx_search.ingest.failures import ParseFailed
from pplx_search.ingest.opened_file import OpenedFile
from pplx_search.ingest.output import Output
from pplx_search.ingest.parsers import properties
from pplx_search.ingest.parsers.markdown import MarkdownWriter
from pplx_search.ingest.parsers.tables import TableRows
from pplx_search.ingest.parsers.xml_events import Event
from pplx_search.ingest.parsers.zipped import Archive

_DROPPED = {"tracked-changes", "note-citation", "sequence-decls", "forms", "bookmark-start"}
_MAX_SPACES = 1000


def parse(opened: OpenedFile, output: Output) -> None:
    archive = Archive(opened)
    _require_open(archive)
    output.begin("odt")
    properties.describe(archive, "meta.xml", output)
    writer = MarkdownWriter(output)
    _Body(writer).read(archive.events("content.xml"))
    writer.finish()
    output.end()


def _require_open(archive: Archive) -> None:
    name = "META-INF/manifest.xml"
    if name in archive and any(event.name == "encryption-data" for event in archive.events(name)):
        raise ParseFailed("encrypted", "a password is needed to read the document")


class _Body:
    """Reads the paragraphs in order. A note comes before its paragraph."""

    def __init__(self, writer: MarkdownWriter):
        self.writer = writer
        self.tables = TableRows(writer)
        self.open: list[tuple[int, list[str]]] = []  # per open paragraph: heading level or 0, and text
        self.dropped = self.lists = 0

    def read(self, events: Iterator[Event]) -> None:
        for event in events:
            if event.what == "text":
                self._add(event.text)
            elif event.what == "start":
                self._start(event)
            else:
                self._end(event.name)

    def _add(self, text: str) -> None:
        if self.open and not self.dropped:
            self.open[-1][1].append(text)

    def _start(self, event: Event) -> None:
        if event.name in _DROPPED:
            self.dropped += 1
            return
        match event.name:
            case "h":
                self.open.append((event.number("outline-level") or 1, []))
            case "p":
                self.open.append((0, []))
            case "s":
                self._add(" " * min(event.number("c") or 1, _MAX_SPACES))
            case "tab":
                self._add("\t")
            case "line-break":
                self._add("\n")
            case "list":
                self.lists += 1
            case "table-row":
                self.tables.start_row()
            case "table-cell" | "covered-table-cell":
                self.tables.start_cell()

    def _end(self, name: str) -> None:
        if name in _DROPPED:
            self.dropped -= 1
            return
        match name:
            case "h" | "p" if self.open:
                self._write(*self.open.pop())
            case "list":
                self.lists -= 1
            case "table-row":
                self.tables.end_row()
            case "table-cell" | "covered-table-cell":
                self.tables.end_cell()

    def _write(self, level: int, texts: list[str]) -> None:
        text = "".join(texts)
        if self.dropped:
            return
        if self.tables.in_cell:
            self.tables.add(text)
        elif level:
            self.writer.heading(level, text)
        elif self.lists:
            self.writer.item(text, self.lists - 1)
        else:
            self.writer.paragraph(text)
