"""Rows of documents: how they come to be live, are copied and go. Names are indexed for live ones alone."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pplx_search.documents import Document
from pplx_search.store.database import Database
from pplx_search.store.vectors import searchable

_FIELDS = "content, kind, title, author, recipient, date, metadata, remarks"


def put(database: Database, file: int, content: int, document: Document, *, live: bool, number: int) -> int:
    """Writes a document of the file's round `number` in place of one of the same part; returns its number."""
    metadata = {name: _clean(value) for name, value in document.metadata.items()}
    values = (
        *(content, document.kind, _clean(document.title)),
        *(metadata.get("author", "") or metadata.get("from", ""), metadata.get("to", ""), seconds(metadata)),
        *(json.dumps(metadata, ensure_ascii=False), json.dumps(document.remarks, ensure_ascii=False)),
    )
    database.run(
        f"INSERT INTO documents(file, part, live, round, {_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (file, part, live) DO UPDATE SET (round, content, kind, title, author, recipient, date, metadata,"
        " remarks) = (excluded.round, excluded.content, excluded.kind, excluded.title, excluded.author,"
        " excluded.recipient, excluded.date, excluded.metadata, excluded.remarks)",
        (file, _clean(document.part), int(live), number, *values),
    )
    found: int = database.value(
        "SELECT id FROM documents WHERE file = ? AND part = ? AND live = ?", (file, _clean(document.part), int(live))
    )
    if live:
        index_name(database, found)
    return found


def publish(database: Database, file: int, number: int) -> None:
    """Makes the documents of the file's round `number` its only ones; a part that was there keeps its number."""
    replaced = f"""
        UPDATE documents SET (round, {_FIELDS}) =
            (SELECT round, {_FIELDS} FROM documents AS hidden
             WHERE hidden.file = documents.file AND hidden.part = documents.part AND NOT hidden.live)
        WHERE file = ? AND live AND EXISTS
            (SELECT 1 FROM documents AS hidden WHERE hidden.file = documents.file AND hidden.part = documents.part
             AND NOT hidden.live AND hidden.round = ?)
        RETURNING id"""
    changed = [row[0] for row in database.rows(replaced, (file, number))]
    gone = "SELECT id FROM documents WHERE file = ? AND (round < ? OR (NOT live AND part IN"
    gone += " (SELECT part FROM documents WHERE file = ? AND live)))"
    drop(database, [row[0] for row in database.rows(gone, (file, number, file))])
    shown = database.rows("UPDATE documents SET live = 1 WHERE file = ? AND NOT live RETURNING id", (file,))
    for document in [*changed, *(row[0] for row in shown)]:
        index_name(database, document)


def copy(database: Database, source: int, target: int) -> None:
    """Gives a file the documents of another one that has the same content."""
    drop_of_file(database, target)
    for (document,) in database.rows("SELECT id FROM documents WHERE file = ? AND live ORDER BY id", (source,)):
        copied = database.insert(
            f"INSERT INTO documents(file, part, live, round, {_FIELDS})"
            f" SELECT ?, part, 1, 0, {_FIELDS} FROM documents WHERE id = ?",
            (target, document),
        )
        index_name(database, copied)


def drop_of_file(database: Database, file: int) -> None:
    """Deletes all documents of a file; their texts stay until the next `compact`."""
    drop(database, [row[0] for row in database.rows("SELECT id FROM documents WHERE file = ?", (file,))])


def drop(database: Database, documents: Sequence[int]) -> None:
    """Deletes documents and their names."""
    ids = [(document,) for document in documents]
    database.run_many("DELETE FROM names WHERE rowid = ?", ids)
    database.run_many("DELETE FROM documents WHERE id = ?", ids)


def index_name(database: Database, document: int) -> None:
    """Makes a live document found by the name of its file and by its title."""
    ((path, part, title),) = database.rows(
        "SELECT path, part, title FROM documents JOIN files ON files.id = file WHERE documents.id = ?", (document,)
    )
    name = "" if part else shown_name(path)  # the messages of a mailbox do not go by its name
    database.run("DELETE FROM names WHERE rowid = ?", (document,))
    database.run(
        "INSERT INTO names(rowid, name, title) VALUES (?, ?, ?)", (document, searchable(name), searchable(title))
    )


def shown_name(path: bytes) -> str:
    """The last part of a path, as people read it."""
    return os.path.basename(path).decode("utf-8", "replace")


def seconds(metadata: Mapping[str, Any]) -> float | None:
    """A document's own date, ISO 8601, in seconds since 1970; without a zone it counts as UTC. None for no date."""
    try:
        date = datetime.fromisoformat(metadata.get("date", ""))
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _clean(text: str) -> str:
    """The text without halves of characters, which SQLite does not take."""
    return text.encode("utf-8", "replace").decode()
