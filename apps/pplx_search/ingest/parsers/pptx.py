"""Presentations: each slide is a page, with its title as a heading, followed by its notes."""

from collections.abc import Iterator

from pplx_search.ingest.failures import ParseFailed
from pplx_search.ingest.opened_file import OpenedFile
from pplx_search.ingest.output import Output
from pplx_search.ingest.parsers import properties
from pplx_search.ingest.parsers.markdown import MarkdownWriter
from pplx_search.ingest.parsers.tables import TableRows
from pplx_search.ingest.parsers.xml_events import Event
from pplx_search.ingest.parsers.zipped import Archive

_TITLES = ("title", "ctrTitle")
_FURNITURE = ("sldNum", "dt", "ftr", "hdr")


def parse(opened: OpenedFile, output: Output) -> None:
    archive = Archive(opened)
    output.begin("pptx")
    properties.describe(archive, "docProps/core.xml", output)
    main = archive.main_part("ppt/presentation.xml")
    targets = archive.relationships(main)
    slides = [e.get("r:id") for e in archive.events(main) if e.what == "start" and e.name == "sldId"]
    writer = MarkdownWriter(output)
    for i, slide in enumerate(slides):
        writer.page = i + 1
        if slide not in targets or targets[slide].target not in archive:
            raise ParseFailed("damaged", f"slide {i + 1} of {len(slides):,} is missing from the archive")
        _read_slide(archive, targets[slide].target, writer)
    writer.finish()
    output.end()


def _read_slide(archive: Archive, name: str, writer: MarkdownWriter) -> None:
    _Shapes(writer).read(archive.events(name))
    for part in archive.relationships(name).values():
        if part.kind in ("notesSlide", "diagramData") and part.target in archive:
            _Shapes(writer, titled=False).read(archive.events(part.target))


class _Shapes:
    """Reads the text in the shapes of a slide. With `titled`, a title becomes a heading."""

    def __init__(self, writer: MarkdownWriter, *, titled: bool = True):
        self.writer, self.titled = writer, titled
        self.tables = TableRows(writer)
        self.placeholder = ""  # placeholder type of the open shape: title, number, …
        self.text: list[str] = []
        self.paragraphs: list[str] = []
        self.in_text = False

    def read(self, events: Iterator[Event]) -> None:
        for event in events:
            if event.what == "text":
                if self.in_text:
                    self.text.append(event.text)
            elif event.what == "start":
                self._start(event)
            else:
                self._end(event.name)

    def _start(self, event: Event) -> None:
        match event.name:
            case "sp":
                self.placeholder, self.paragraphs = "", []
            case "ph":
                self.placeholder = event.get("type") or "body"
            case "p":
                self.text = []
            case "t":
                self.in_text = True
            case "br":
                self.text.append("\n")
            case "tr":
                self.tables.start_row()
            case "tc":
                self.tables.start_cell()

    def _end(self, name: str) -> None:
        match name:
            case "t":
                self.in_text = False
            case "p":
                self._end_paragraph("".join(self.text))
            case "sp":
                self._end_shape()
            case "tc":
                self.tables.end_cell()
            case "tr":
                self.tables.end_row()

    def _end_paragraph(self, text: str) -> None:
        self.text = []
        if self.tables.in_cell:
            self.tables.add(text)
        elif self.placeholder in _FURNITURE:
            return
        elif self.placeholder in _TITLES and self.titled:
            self.paragraphs.append(text)
        else:
            self.writer.paragraph(text)

    def _end_shape(self) -> None:
        if self.placeholder in _TITLES and self.titled:
            self.writer.heading(1, " ".join(self.paragraphs))
        self.placeholder, self.paragraphs = "", []
