"""Read the status of an index, and its documents, chunks and lines of text."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge.errors import InputError
from pplx_search.store.bits import PATTERN
from pplx_search.store.database import Database
from pplx_search.store.snapshot import filter_sql
from pplx_search.store.texts import BLOCK_CHARS, Texts
from pplx_search.store.values import Filter, Status, StoredChunk, StoredDocument
from pplx_search.store.vectors import Vectors

_DOCUMENT = (
    "SELECT documents.id, files.path, part, collections.name, kind, title, date, metadata, remarks, content, n_chars"
    " FROM documents JOIN files ON files.id = file JOIN roots ON roots.id = root"
    " JOIN collections ON collections.id = collection JOIN contents ON contents.id = content"
)


def read_status(database: Database, directory: Path, vectors: Vectors, kernel: str, mended: bool) -> Status:
    """See `Store.status`."""
    states = dict(database.rows("SELECT state, count(*) FROM files GROUP BY state"))
    reasons = database.rows("SELECT code, count(*) FROM files WHERE state IN ('failed', 'skipped') GROUP BY code")
    serving, building = vectors.serving, vectors.building
    held = "EXISTS (SELECT 1 FROM documents WHERE documents.content = contents.id AND live)"
    n_contents, n_chars = database.rows(f"SELECT count(*), coalesce(sum(n_chars), 0) FROM contents WHERE {held}")[0]

    def embedded(number: int) -> tuple[int, int]:
        """Return the number of fully embedded texts and the number of chunks in a generation."""
        row = database.rows(
            "SELECT coalesce(sum(complete), 0), coalesce(sum(n_chunks), 0) FROM embeddings JOIN contents"
            f" ON contents.id = content WHERE generation = ? AND {held}",
            (number,),
        )[0]
        return row[0], row[1]

    n_embedded, n_chunks = embedded(serving.id) if serving else (0, 0)
    remark = "the bits file is damaged and was rebuilt in memory; opening the index for writing repairs it"
    return Status(
        indexed=states.get("indexed", 0),
        pending=states.get("pending", 0),
        failed=states.get("failed", 0),
        skipped=states.get("skipped", 0),
        reasons=dict(reasons),
        n_documents=database.value("SELECT count(*) FROM documents WHERE live"),
        n_chunks=n_chunks,
        n_chars=n_chars,
        n_contents=n_contents,
        n_embedded=n_embedded,
        n_rebuilt=embedded(building.id)[0] if building else None,
        serving=serving,
        building=building,
        database_bytes=database.pragma("page_count") * database.pragma("page_size"),
        bits_bytes=sum(path.stat().st_size for path in directory.glob(PATTERN)),
        kernel=kernel,
        remarks=(remark,) if mended else (),
    )


def read_pending(database: Database) -> int:
    """See `Store.n_pending`. The second condition lets SQLite use the partial index `files_not_indexed`."""
    return database.value("SELECT count(*) FROM files WHERE state = 'pending' AND state <> 'indexed'")


def read_document(database: Database, vectors: Vectors, document: int) -> StoredDocument:
    """Return a live document. Raises InputError if it is not in the index, or no longer."""
    row = database.row(f"{_DOCUMENT} WHERE documents.id = ? AND live", (document,))
    if row is None:
        raise InputError(f"document {document} is not in the index; search again")
    return _document(row, vectors)


def read_documents(database: Database, vectors: Vectors, wanted: Filter) -> Iterator[StoredDocument]:
    """Yield the live documents that match a filter, in the order they were added."""
    condition, values = filter_sql(wanted)
    for row in database.each(f"{_DOCUMENT} WHERE {condition} ORDER BY documents.id", values):
        yield _document(row, vectors)


def read_chunks(database: Database, content: int) -> Iterator[StoredChunk]:
    """Yield the chunks of a text in the serving generation, in order."""
    for row in database.each(
        "SELECT chunks.id, ordinal, start, stop, line, page, heading, codes FROM runs JOIN chunks ON chunks.id BETWEEN"
        " first_chunk AND first_chunk + runs.n_chunks - 1 WHERE runs.embedding = (SELECT embeddings.id FROM embeddings"
        " JOIN generations ON generations.id = generation WHERE content = ? AND state = 'serving') ORDER BY chunks.id",
        (content,),
    ):
        number, index, start, stop, line, page, heading, codes = row
        path = tuple(json.loads(heading)) if heading else ()
        yield StoredChunk(number, index, start, stop, line, page, path, np.frombuffer(codes, np.int8))


def _document(row: tuple[Any, ...], vectors: Vectors) -> StoredDocument:
    number, path, part, collection, kind, title, date, metadata, remarks, content, n_chars = row
    serving = vectors.serving
    progress = serving and vectors.progress(content, serving)
    return StoredDocument(
        id=number,
        path=path,
        part=part,
        collection=collection,
        kind=kind,
        title=title,
        date=date,
        metadata=json.loads(metadata),
        remarks=tuple(json.loads(remarks)),
        content=content,
        n_chars=n_chars,
        n_chunks=progress.n_chunks if progress else 0,
        complete=bool(progress and progress.complete),
    )


def read_lines(database: Database, texts: Texts, content: int, first: int, count: int) -> str:
    """Return up to `count` lines of a text from line `first` (1-based) on, starting at the nearest chunk before it."""
    row = database.row(
        "SELECT start, line FROM runs JOIN chunks ON chunks.id BETWEEN first_chunk AND first_chunk + runs.n_chunks - 1"
        " WHERE runs.embedding = (SELECT embeddings.id FROM embeddings JOIN generations ON generations.id = generation"
        " WHERE content = ? AND state = 'serving') AND line < ? ORDER BY chunks.id DESC LIMIT 1",
        (content, first),
    )
    position, line = row or (0, 1)
    found: list[str] = []
    while len(found) < count and (text := texts.read(content, position, position + BLOCK_CHARS)):
        position += len(text)
        for part in text.split("\n")[:-1]:
            line = _put(found, part + "\n", line, first)
        if tail := text.rpartition("\n")[2]:
            _put(found, tail, line, first)
    return "".join(found[:count])


def _put(found: list[str], part: str, line: int, first: int) -> int:
    """Append part of a line to `found` if its line is wanted, and return the number of the next line."""
    if line >= first:
        if found and not found[-1].endswith("\n"):
            found[-1] += part
        else:
            found.append(part)
    return line + part.endswith("\n")
