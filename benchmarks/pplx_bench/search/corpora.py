"""Folders like those that people have, made of the passages of tasks: many small files, a large one, a mailbox."""

import csv
import html
import mailbox
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from itertools import chain, count, islice, zip_longest
from pathlib import Path

from pplx_bench.retrieval.beir import RetrievalTask, TaskPassage, json_rows
from pplx_edge.errors import InputError

_FILES_A_FOLDER = 100
_SUFFIXES = ("md", "txt", "html")
BOOKS_FILE, PDF_FOLDER = "longdocs.jsonl.gz", "pdf"


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A file that contains one passage."""

    path: Path
    task: str
    passage: TaskPassage


def small_files(tasks: Sequence[RetrievalTask], folder: Path, n_files: int) -> list[SmallFile]:
    """Write each passage to a file, from each task in turn: Markdown, text and HTML, a hundred per folder.

    Raises InputError if the tasks have fewer distinct passages.
    """
    found = list(islice(_in_turn(tasks), n_files))
    if len(found) < n_files:
        raise InputError(f"--files {n_files:,}: the tasks have {len(found):,} distinct passages; ask for fewer")
    files = []
    for number, (task, passage) in enumerate(found):
        suffix = _SUFFIXES[number % len(_SUFFIXES)]
        path = folder / f"{number // _FILES_A_FOLDER:03}" / f"{number:06}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_written(passage, suffix), encoding="utf-8")
        files.append(SmallFile(path, task, passage))
    return files


def tiny_files(folder: Path, n_files: int) -> list[Path]:
    """Write files of one line each."""
    paths = []
    for number in range(n_files):
        path = folder / f"{number // _FILES_A_FOLDER:04}" / f"note {number:06}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"A short note, number {number}.\n", encoding="utf-8")
        paths.append(path)
    return paths


def large_text(texts: Iterable[str], path: Path, n_bytes: int) -> None:
    """Write a single text of `n_bytes`, and the rest of its last paragraph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for text in _until(texts, n_bytes):
            file.write(text.encode() + b"\n\n")


def large_mailbox(texts: Iterable[str], path: Path, n_bytes: int) -> None:
    """Write a mailbox with a message for each text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    box = mailbox.mbox(path, create=True)
    for number, text in enumerate(_until(texts, n_bytes)):
        message = EmailMessage()
        message["From"], message["To"] = f"writer{number % 97}@example.org", "reader@example.org"
        message["Date"], message["Subject"] = "Thu, 01 Jan 2026 12:00:00 +0000", f"Message {number}"
        message.set_content(text)
        box.add(message)
    box.close()


def large_table(texts: Iterable[str], path: Path, n_bytes: int) -> None:
    """Write a CSV file with a row for each text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["number", "text"])
        rows.writerows(enumerate(_until(texts, n_bytes)))


def book_files(data: Path, tasks: Sequence[RetrievalTask], folder: Path, n_bytes: int) -> None:
    """Write each book to a file, and then the passages of the tasks, a dozen per file, up to `n_bytes`."""
    folder.mkdir(parents=True)
    source = data / BOOKS_FILE
    books = [row["text"] for _, row in json_rows(source)] if source.is_file() else []
    dozens = ("\n\n".join(text for text in some if text) for some in zip_longest(*[every_text(tasks)] * 12))
    for number, text in enumerate(_until(chain(books, dozens), n_bytes)):
        (folder / f"{number:04}.txt").write_text(text, encoding="utf-8")


def copy_pdfs(data: Path, folder: Path) -> int:
    """Copy the PDFs in the folder `pdf` of the data, and return their number."""
    folder.mkdir(parents=True)
    found = sorted((data / PDF_FOLDER).glob("*.pdf"))
    for path in found:
        shutil.copy(path, folder)
    return len(found)


def every_text(tasks: Sequence[RetrievalTask]) -> Iterator[str]:
    """Yield the distinct passages of the tasks, from each task in turn."""
    return (passage.text for _, passage in _in_turn(tasks))


def without_end(texts: Sequence[str]) -> Iterator[str]:
    """Yield the texts repeatedly, with the number of the round, so that all of them are distinct."""
    return (f"{number} {text}" if number else text for number in count() for text in texts)


def _until(texts: Iterable[str], n_bytes: int) -> Iterator[str]:
    for text in texts:
        if n_bytes <= 0:
            return
        n_bytes -= len(text.encode())
        yield text


def _in_turn(tasks: Sequence[RetrievalTask]) -> Iterator[tuple[str, TaskPassage]]:
    seen: set[str] = set()
    for passages in zip_longest(*(task.corpus for task in tasks)):
        for task, passage in zip(tasks, passages, strict=True):
            if passage is None or not (text := " ".join(passage.text.split())) or text in seen:
                continue
            seen.add(text)
            yield task.name, passage


def _written(passage: TaskPassage, suffix: str) -> str:
    title, text = passage.title, passage.text
    if suffix == "html":
        heading = f"<h1>{html.escape(title)}</h1>" if title else ""
        return f"<!doctype html><html><body>{heading}<p>{html.escape(text)}</p></body></html>\n"
    return (f"# {title}\n\n{text}\n" if suffix == "md" else f"{title}\n\n{text}\n") if title else f"{text}\n"
