"""Workbooks: each sheet is a page with its name as heading, and each non-empty row is a line."""

import re
from collections.abc import Iterator
from datetime import datetime, timedelta

from pplx_search.ingest.failures import ParseFailed
from pplx_search.ingest.opened_file import OpenedFile
from pplx_search.ingest.output import Output
from pplx_search.ingest.parsers import properties
from pplx_search.ingest.parsers.markdown import MarkdownWriter
from pplx_search.ingest.parsers.xml_events import Event, whole_number
from pplx_search.ingest.parsers.zipped import Archive

_BUILT_IN_DATES = {*range(14, 23), *range(27, 37), 45, 46, 47, *range(50, 59)}
_LITERAL = re.compile(r'"[^"]*"|\\.|\[(?!h|m|s)[^\]]*\]', re.IGNORECASE)
_DATE_LETTERS = re.compile(r"[ymdhs]", re.IGNORECASE)
_COLUMN = re.compile(r"[A-Z]{1,3}")
_EPOCH, _EPOCH_1904 = datetime(1899, 12, 30), datetime(1904, 1, 1)
_MAX_COLUMNS = 16384


def parse(opened: OpenedFile, output: Output) -> None:
    archive = Archive(opened)
    output.begin("xlsx")
    properties.describe(archive, "docProps/core.xml", output)
    main = archive.main_part("xl/workbook.xml")
    targets = archive.relationships(main)
    sheets, epoch = _workbook(archive.events(main))
    of_kind = {part.kind: part.target for part in targets.values() if part.target in archive}
    strings = _strings(archive.events(of_kind["sharedStrings"])) if "sharedStrings" in of_kind else []
    is_date = _date_styles(archive.events(of_kind["styles"])) if "styles" in of_kind else []
    writer = MarkdownWriter(output)
    cells = _Cells(strings, is_date, epoch)
    for i, (name, target) in enumerate(sheets):
        if target not in targets or targets[target].target not in archive:
            raise ParseFailed("damaged", f"sheet {i + 1} of {len(sheets):,} is missing from the archive")
        if targets[target].kind == "worksheet":
            writer.page = i + 1
            writer.heading(1, name)
            for row in cells.rows(archive.events(targets[target].target)):
                writer.row(row)
    if not output.title:
        output.title = " "  # do not use the name of the first sheet as title
    writer.finish()
    output.end()


def _workbook(events: Iterator[Event]) -> tuple[list[tuple[str, str]], datetime]:
    """Return the name and id of each sheet, and the epoch of dates."""
    sheets, epoch = [], _EPOCH
    for event in events:
        if event.what == "start" and event.name == "sheet":
            sheets.append((event.get("name"), event.get("r:id")))
        elif event.what == "start" and event.name == "workbookPr" and event.get("date1904") in ("1", "true"):
            epoch = _EPOCH_1904
    return sheets, epoch


def _strings(events: Iterator[Event]) -> list[str]:
    """Return the shared strings that cells refer to by index, without phonetic readings of Japanese text."""
    strings: list[str] = []
    text: list[str] = []
    inside = in_reading = False
    for event in events:
        if event.what == "text":
            if inside and not in_reading:
                text.append(event.text)
        elif event.name == "si":
            if event.what == "end":
                strings.append("".join(text))
            text = []
        elif event.name == "t":
            inside = event.what == "start"
        elif event.name == "rPh":
            in_reading = event.what == "start"
    return strings


def _date_styles(events: Iterator[Event]) -> list[bool]:
    """Return, per cell style, whether it formats numbers as dates."""
    custom: dict[str, bool] = {}
    styles: list[bool] = []
    in_cells = False
    for event in events:
        if event.name == "cellXfs":
            in_cells = event.what == "start"
        elif event.what == "start" and event.name == "numFmt":
            shown = _LITERAL.sub("", event.get("formatCode").split(";")[0])
            custom[event.get("numFmtId")] = bool(_DATE_LETTERS.search(shown)) and "general" not in shown.lower()
        elif event.what == "start" and event.name == "xf" and in_cells:
            styles.append(custom.get(event.get("numFmtId"), event.number("numFmtId") in _BUILT_IN_DATES))
    return styles


class _Cells:
    """Reads the text of cells as displayed."""

    def __init__(self, strings: list[str], is_date: list[bool], epoch: datetime):
        self.strings, self.is_date, self.epoch = strings, is_date, epoch

    def rows(self, events: Iterator[Event]) -> Iterator[list[str]]:
        row: list[str] = []
        cell = Event("start", "c", {})
        text: list[str] = []
        inside = False
        for event in events:
            if event.what == "text":
                if inside:
                    text.append(event.text)
            elif event.name in ("v", "t"):
                inside = event.what == "start"
            elif event.name == "c" and event.what == "start":
                cell, text = event, []
            elif event.name == "c":
                _put(row, _column(cell.get("r"), len(row)), self._text(cell, "".join(text)))
            elif event.name == "row":
                if event.what == "end":
                    yield row
                row = []

    def _text(self, cell: Event, value: str) -> str:
        match cell.get("t"):
            case "s":
                index = whole_number(value)
                return self.strings[index] if index is not None and index < len(self.strings) else ""
            case "b":
                return {"0": "FALSE", "1": "TRUE"}.get(value, value)
            case "" | "n":
                return self._number(value, cell.number("s"))
        return value

    def _number(self, value: str, style: int | None) -> str:
        is_date = style is not None and style < len(self.is_date) and self.is_date[style]
        try:
            return self._date(float(value)) if is_date else _plain(value)
        except (ValueError, OverflowError):
            return value

    def _date(self, days: float) -> str:
        moment = self.epoch + timedelta(seconds=round(days * 86400))
        if 0 <= days < 1:
            return moment.time().isoformat()
        return moment.date().isoformat() if days == int(days) else moment.isoformat(" ")


def _put(row: list[str], column: int, text: str) -> None:
    row.extend([""] * (column + 1 - len(row)))
    row[column] = text


def _column(reference: str, following: int) -> int:
    """Return the column index (0 for A, 26 for AA), or the next column if the cell has no reference."""
    match = _COLUMN.match(reference)
    if not match:
        return min(following, _MAX_COLUMNS - 1)
    column = 0
    for letter in match.group():
        column = column * 26 + ord(letter) - ord("A") + 1
    return min(column, _MAX_COLUMNS) - 1


def _plain(value: str) -> str:
    """Return a number without binary rounding artifacts: 0.1 for 0.10000000000000001."""
    if len(value) < 16 or not value:
        return value
    number = f"{float(value):.15g}"
    return number if "e" not in number else value
