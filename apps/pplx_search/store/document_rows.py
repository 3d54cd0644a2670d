"""Rows of documents: add, publish, copy and delete them. Only live documents are in the full-text index of names."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pplx_search.documents import Document
from pplx_search.ids import DocumentId, FileId, TextId
from pplx_search.query.full_text import searchable, without_surrogates
from pplx_search.store.database import Database

_FIELDS = "content, kind, title, author, recipient, date, metadata, remarks"


def put(
    database: Database, file_id: FileId, text_id: TextId, document: Document, *, live: bool, round_number: int
) -> DocumentId:
    """Write a document of a file, replacing one with the same part, and return its id.

    A round is one attempt at staging the documents of a file.
    """
    part = without_surrogates(document.part)
    metadata = {name: without_surrogates(value) for name, value in document.metadata.items()}
    values = (
        *(text_id, document.kind, without_surrogates(document.title)),
        *(metadata.get("author", "") or metadata.get("from", ""), metadata.get("to", ""), seconds(metadata)),
        *(json.dumps(metadata, ensure_ascii=False), json.dumps(document.remarks, ensure_ascii=False)),
    )
    database.run(
        f"INSERT INTO documents(file, part, live, round, {_FIELDS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (file, part, live) DO UPDATE SET (round, content, kind, title, author, recipient, date, metadata,"
        " remarks) = (excluded.round, excluded.content, excluded.kind, excluded.title, excluded.author,"
        " excluded.recipient, excluded.date, excluded.metadata, excluded.remarks)",
        (file_id, part, int(live), round_number, *values),
    )
    document_id: DocumentId = database.value(
        "SELECT id FROM documents WHERE file = ? AND part = ? AND live = ?",
        (file_id, without_surrogates(document.part), int(live)),
    )
    if live:
        index_name(database, document_id)
    return document_id


def publish(database: Database, file_id: FileId, round_number: int) -> None:
    """Make the documents of a round the only ones of a file. Parts that existed before keep their document id."""
    replaced = f"""
        UPDATE documents SET (round, {_FIELDS}) =
            (SELECT round, {_FIELDS} FROM documents AS hidden
             WHERE hidden.file = documents.file AND hidden.part = documents.part AND NOT hidden.live)
        WHERE file = ? AND live AND EXISTS
            (SELECT 1 FROM documents AS hidden WHERE hidden.file = documents.file AND hidden.part = documents.part
             AND NOT hidden.live AND hidden.round = ?)
        RETURNING id"""
    changed = [row[0] for row in database.rows(replaced, (file_id, round_number))]
    outdated = "SELECT id FROM documents WHERE file = ? AND (round < ? OR (NOT live AND part IN"
    outdated += " (SELECT part FROM documents WHERE file = ? AND live)))"
    drop(database, [row[0] for row in database.rows(outdated, (file_id, round_number, file_id))])
    shown = database.rows("UPDATE documents SET live = 1 WHERE file = ? AND NOT live RETURNING id", (file_id,))
    for document_id in [*changed, *(row[0] for row in shown)]:
        index_name(database, document_id)


def copy(database: Database, source: FileId, target: FileId) -> None:
    """Copy the documents of a file to another file with the same content, replacing those of the latter."""
    drop_of_file(database, target)
    for (document_id,) in database.rows("SELECT id FROM documents WHERE file = ? AND live ORDER BY id", (source,)):
        copied = database.insert(
            f"INSERT INTO documents(file, part, live, round, {_FIELDS})"
            f" SELECT ?, part, 1, 0, {_FIELDS} FROM documents WHERE id = ?",
            (target, document_id),
        )
        index_name(database, DocumentId(copied))


def drop_of_file(database: Database, file_id: FileId) -> None:
    """Delete all documents of a file. Their texts are kept until the next `compact`."""
    drop(database, [row[0] for row in database.rows("SELECT id FROM documents WHERE file = ?", (file_id,))])


def drop(database: Database, document_ids: Sequence[DocumentId]) -> None:
    """Delete documents and their names."""
    rows = [(document_id,) for document_id in document_ids]
    database.run_many("DELETE FROM names WHERE rowid = ?", rows)
    database.run_many("DELETE FROM documents WHERE id = ?", rows)


def index_name(database: Database, document_id: DocumentId) -> None:
    """Write the file name and title of a live document to the full-text index of names."""
    ((path, part, title),) = database.rows(
        "SELECT path, part, title FROM documents JOIN files ON files.id = file WHERE documents.id = ?", (document_id,)
    )
    name = "" if part else shown_name(path)  # messages are not found by the name of their mailbox
    database.run("DELETE FROM names WHERE rowid = ?", (document_id,))
    database.run(
        "INSERT INTO names(rowid, name, title) VALUES (?, ?, ?)", (document_id, searchable(name), searchable(title))
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
