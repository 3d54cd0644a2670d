"""Write the documents of a task as files like those that people have: Markdown, HTML, PDF and Word, in turn.

A document consists of all passages with its `doc_id` in order, one paragraph each, below its title as a heading; a
passage without `doc_id` is a document by itself. The title is also in the file's metadata and, with a number if it is
taken, the file's name.
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
_FONT, _BOLD = "DejaVuSans", "DejaVuSans-Bold"  # installed with matplotlib, so on every machine

Indices = tuple[int, ...]
Write = Callable[[Path, str, Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file, and the corpus indices of the passages in it."""

    path: Path
    passages: Indices


@dataclass(frozen=True, slots=True)
class Written:
    """All files of a task. `not_pdf` counts those that could not be PDF because its font lacks letters."""

    files: tuple[WrittenFile, ...]
    not_pdf: int

    @property
    def formats(self) -> dict[str, int]:
        """The number of files of each format."""
        return dict(Counter(file.path.suffix[1:] for file in self.files))


def write_files(task: RetrievalTask, folder: Path) -> Written:
    """Write the documents of a task to a new folder, always with the same contents."""
    folder.mkdir(parents=True)
    formats = list(_WRITERS)
    names: set[str] = set()
    files, not_pdf = [], 0
    for number, indices in enumerate(documents(task)):
        title, texts = _content(task, indices)
        suffix = formats[number % len(formats)]
        if suffix == "pdf" and not _fits_pdf(title, texts):
            suffix = formats[(number + 1) % len(formats)]
            not_pdf += 1
        path = folder / f"{_free_name(title, names)}.{suffix}"
        _WRITERS[suffix](path, title, texts)
        files.append(WrittenFile(path, indices))
    return Written(tuple(files), not_pdf)


def documents(task: RetrievalTask) -> tuple[Indices, ...]:
    """Return the corpus indices of the passages of each document, in order."""
    return task.documents or tuple((index,) for index in range(len(task.corpus)))


def _content(task: RetrievalTask, indices: Indices) -> tuple[str, list[str]]:
    passages = [task.corpus[index] for index in indices]
    title = next((passage.title for passage in passages if passage.title), "")
    return " ".join(_plain(title).split()), [_plain(passage.text).strip() for passage in passages]


def _plain(text: str) -> str:
    return _CONTROL.sub(" ", text)


def _free_name(title: str, taken: set[str]) -> str:
    """Return a file name made from a title, with a number if the name is taken, ignoring case."""
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
    document.core_properties.title = title[:255]  # the limit of the property
    document.core_properties.author = ""
    if title:
        document.add_heading(title, level=0)
    for text in texts:
        document.add_paragraph(text)
    document.save(str(path))


_WRITERS: dict[str, Write] = {"md": _markdown, "html": _html, "pdf": _pdf, "docx": _docx}


def _fits_pdf(title: str, texts: Sequence[str]) -> bool:
    """Return True if the font has every character, and none is written from right to left."""
    return all(map(_printable, {*title, *"".join(texts)} - {"\n", "\t"}))


def _printable(character: str) -> bool:
    return ord(character) in _pdf_fonts() and unicodedata.bidirectional(character) not in _FROM_THE_RIGHT


@cache
def _pdf_fonts() -> dict[int, Any]:
    """Register the fonts with reportlab, and return the characters of the body font."""
    import matplotlib
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.ttfonts import TTFont

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    for name in (_FONT, _BOLD):
        pdfmetrics.registerFont(TTFont(name, str(fonts / f"{name}.ttf")))
    return pdfmetrics.getFont(_FONT).face.charToGlyph  # type: ignore[union-attr]
