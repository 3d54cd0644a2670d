"""Rows of documents: add, publish, copy and delete them. Only live documents are in the name index."""

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
    """Write a document of the file's round `number`, replacing one with the same part, and return its id."""
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
    """Make the documents of round `number` the only ones of a file. Parts that existed before keep their id."""
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
    """Copy the documents of a file to another file with the same content."""
    drop_of_file(database, target)
    for (document,) in database.rows("SELECT id FROM documents WHERE file = ? AND live ORDER BY id", (source,)):
        copied = database.insert(
            f"INSERT INTO documents(file, part, live, round, {_FIELDS})"
            f" SELECT ?, part, 1, 0, {_FIELDS} FROM documents WHERE id = ?",
            (target, document),
        )
        index_name(database, copied)


def drop_of_file(database: Database, file: int) -> None:
    """Delete all documents of a file. Their texts are kept until the next `compact`."""
    drop(database, [row[0] for row in database.rows("SELECT id FROM documents WHERE file = ?", (file,))])


def drop(database: Database, documents: Sequence[int]) -> None:
    """Delete documents and their names."""
    ids = [(document,) for document in documents]
    database.run_many("DELETE FROM names WHERE rowid = ?", ids)
    database.run_many("DELETE FROM documents WHERE id = ?", ids)


def index_name(database: Database, document: int) -> None:
    """Add the file name and title of a live document to the name index."""
    ((path, part, title),) = database.rows(
        "SELECT path, part, title FROM documents JOIN files ON files.id = file WHERE documents.id = ?", (document,)
    )
    name = "" if part else shown_name(path)  # messages are not found by the name of their mailbox
    database.run("DELETE FROM names WHERE rowid = ?", (document,))
    database.run(
        "INSERT INTO names(rowid, name, title) VALUES (?, ?, ?)", (document, searchable(name), searchable(title))
    )


def shown_name(path: bytes) -> str:
    """Return the last component of a path for display."""
    return os.path.basename(path).decode("utf-8", "replace")


def seconds(metadata: Mapping[str, Any]) -> float | None:
    """Return a document's ISO 8601 date in seconds since 1970 (UTC without a time zone), or None without a date."""
    try:
        date = datetime.fromisoformat(metadata.get("date", ""))
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def _clean(text: str) -> str:
    """Return the text with lone surrogates replaced, which SQLite does not accept."""
    return text.encode("utf-8", "replace").decode()
