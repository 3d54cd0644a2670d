"""A task's documents as files that a person might have: Markdown, HTML, PDF and Word, in turn.

A document is all passages with its `doc_id`, in their order, a paragraph each, under its title as a heading; a passage
without one is a document by itself. The title is also what the file says of itself (`<title>`, properties) and, with a
number where it was taken, the file's name.
"""

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pplx_bench.retrieval.beir import RetrievalTask
from pplx_search.ingest.parsers.markdown import escaped

_NAME_CHARS = 80
_UNNAMED = "document"
_NOT_IN_NAMES = re.compile(r"[^\w.,'()+-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # what XML cannot hold
_FROM_THE_RIGHT = ("R", "AL", "AN")
_FONT, _BOLD = "DejaVuSans", "DejaVuSans-Bold"  # with matplotlib, so on every machine

Places = tuple[int, ...]
Write = Callable[[Path, str, Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file and the places in the task's corpus of the passages in it."""

    path: Path
    places: Places


@dataclass(frozen=True, slots=True)
class Written:
    """All files of a task; `not_pdf` counts those whose turn it was to be PDF and that its font has no letters for."""

    files: tuple[WrittenFile, ...]
    not_pdf: int

    @property
    def formats(self) -> dict[str, int]:
        """The number of files of each format."""
        return dict(Counter(file.path.suffix[1:] for file in self.files))


def write_files(task: RetrievalTask, folder: Path) -> Written:
    """Writes a task's documents into a new folder, the same ones each time."""
    folder.mkdir(parents=True)
    formats = list(_WRITERS)
    names: set[str] = set()
    files, not_pdf = [], 0
    for number, places in enumerate(documents(task)):
        title, texts = _content(task, places)
        suffix = formats[number % len(formats)]
        if suffix == "pdf" and not _fits_pdf(title, texts):
            suffix = formats[(number + 1) % len(formats)]
            not_pdf += 1
        path = folder / f"{_free_name(title, names)}.{suffix}"
        _WRITERS[suffix](path, title, texts)
        files.append(WrittenFile(path, places))
    return Written(tuple(files), not_pdf)


def documents(task: RetrievalTask) -> tuple[Places, ...]:
    """Places in the corpus of the passages of each document, in their order."""
    return task.documents or tuple((place,) for place in range(len(task.corpus)))


def _content(task: RetrievalTask, places: Places) -> tuple[str, list[str]]:
    passages = [task.corpus[place] for place in places]
    title = next((passage.title for passage in passages if passage.title), "")
    return " ".join(_plain(title).split()), [_plain(passage.text).strip() for passage in passages]


def _plain(text: str) -> str:
    return _CONTROL.sub(" ", text)


def _free_name(title: str, taken: set[str]) -> str:
    """A title as the name of a file, the first that is free whatever the case."""
    stem = _NOT_IN_NAMES.sub(" ", unicodedata.normalize("NFC", title)).strip(" .")[:_NAME_CHARS].strip(" .")
    stem = stem or _UNNAMED
    name, count = stem, 1
    while name.casefold() in taken:
        count += 1
        name = f"{stem} ({count})"
    taken.add(name.casefold())
    return name


def _markdown(path: Path, title: str, texts: Sequence[str]) -> None:
    blocks = [f"# {title}"] if title else []
    path.write_text("\n\n".join([*blocks, *map(escaped, texts)]) + "\n", encoding="utf-8")


def _html(path: Path, title: str, texts: Sequence[str]) -> None:
    heading = f"<h1>{html.escape(title)}</h1>\n" if title else ""
    body = "\n".join(f"<p>{html.escape(text)}</p>" for text in texts)
    path.write_text(
        f'<!doctype html>\n<html><head><meta charset="utf-8"><title>{html.escape(title)}</title></head>\n'
        f"<body>\n{heading}{body}\n</body></html>\n",
        encoding="utf-8",
    )


def _pdf(path: Path, title: str, texts: Sequence[str]) -> None:
    from reportlab.lib.styles import ParagraphStyle
    from reportlab.platypus import Flowable, Paragraph, SimpleDocTemplate

    _pdf_fonts()
    heading = ParagraphStyle("heading", fontName=_BOLD, fontSize=16, leading=20, spaceAfter=12)
    body = ParagraphStyle("body", fontName=_FONT, fontSize=10, leading=14, spaceAfter=8)
    story: list[Flowable] = [Paragraph(html.escape(title), heading)] if title else []
    story += [Paragraph(html.escape(text), body) for text in texts]
    SimpleDocTemplate(str(path), title=title, invariant=1).build(story)


def _docx(path: Path, title: str, texts: Sequence[str]) -> None:
    import docx

    document = docx.Document()
    document.core_properties.title = title[:255]  # the most that the property may have
    document.core_properties.author = ""
    if title:
        document.add_heading(title, level=0)
    for text in texts:
        document.add_paragraph(text)
    document.save(str(path))


_WRITERS: dict[str, Write] = {"md": _markdown, "html": _html, "pdf": _pdf, "docx": _docx}


def _fits_pdf(title: str, texts: Sequence[str]) -> bool:
    """Return whether the font has every character, and none is written from right to left."""
    return all(map(_printable, {*title, *"".join(texts)} - {"\n", "\t"}))


def _printable(character: str) -> bool:
    return ord(character) in _pdf_fonts() and unicodedata.bidirectional(character) not in _FROM_THE_RIGHT


@cache
def _pdf_fonts() -> dict[int, Any]:
    """Makes the fonts known to reportlab; the characters that the text's has."""
    import matplotlib
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in (_FONT, _BOLD):
        pdfmetrics.registerFont(TTFont(name, str(fonts / f"{name}.ttf")))
    return pdfmetrics.getFont(_FONT).face.charToGlyph  # type: ignore[union-attr]
