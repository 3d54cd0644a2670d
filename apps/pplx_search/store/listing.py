"""List the documents of an index, and the chunks and lines of their texts."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from pplx_edge.errors import InputError
from pplx_search.ids import ChunkId, DocumentId, TextId
from pplx_search.query.types import Filter
from pplx_search.store.database import Database
from pplx_search.store.snapshot import filter_sql
from pplx_search.store.texts import BLOCK_CHARS, Texts
from pplx_search.store.values import Passage, StoredChunk, StoredDocument
from pplx_search.store.vectors import Vectors

_DOCUMENT = (
    "SELECT documents.id, files.path, part, collections.name, kind, title, date, metadata, remarks, content, n_chars"
    " FROM documents JOIN files ON files.id = file JOIN roots ON roots.id = root"
    " JOIN collections ON collections.id = collection JOIN contents ON contents.id = content"
)


def read_document(database: Database, vectors: Vectors, document_id: DocumentId) -> StoredDocument:
    """Return a live document. Raises InputError if it is not in the index."""
    row = database.row(f"{_DOCUMENT} WHERE documents.id = ? AND live", (document_id,))
    if row is None:
        raise InputError(f"document {document_id} is not in the index; search again")
    return _document(row, vectors)


def read_documents(database: Database, vectors: Vectors, wanted: Filter) -> Iterator[StoredDocument]:
    """Yield the live documents that match a filter, in the order they were added."""
    condition, values = filter_sql(wanted)
    for row in database.each(f"{_DOCUMENT} WHERE {condition} ORDER BY documents.id", values):
        yield _document(row, vectors)


def read_chunks(database: Database, text_id: TextId) -> Iterator[StoredChunk]:
    """Yield the chunks of a text in the serving generation, in order."""
    for row in database.each(
        "SELECT chunks.id, ordinal, start, stop, line, page, heading, codes FROM runs JOIN chunks ON chunks.id BETWEEN"
        " first_chunk AND first_chunk + runs.n_chunks - 1 WHERE runs.embedding = (SELECT embeddings.id FROM embeddings"
        " JOIN generations ON generations.id = generation WHERE content = ? AND state = 'serving') ORDER BY chunks.id",
        (text_id,),
    ):
        chunk_id, index, start, stop, line, page, heading, codes = row
        headings = tuple(json.loads(heading)) if heading else ()
        yield StoredChunk(chunk_id, index, start, stop, line, page, headings, np.frombuffer(codes, np.int8))


def read_passage(database: Database, texts: Texts, chunk_id: ChunkId) -> Passage:
    """Return the text of a chunk."""
    ((text_id, start, stop),) = database.rows(
        "SELECT content, start, stop FROM chunks JOIN embeddings ON embeddings.id = embedding WHERE chunks.id = ?",
        (chunk_id,),
    )
    return Passage(text_id, texts.read(text_id, start, stop))


def _document(row: tuple[Any, ...], vectors: Vectors) -> StoredDocument:
    document_id, path, part, collection, kind, title, date, metadata, remarks, text_id, n_chars = row
    serving = vectors.serving
    progress = serving and vectors.progress(text_id, serving)
    return StoredDocument(
        id=document_id,
        path=path,
        part=part,
        collection=collection,
        kind=kind,
        title=title,
        date=date,
        metadata=json.loads(metadata),
        remarks=tuple(json.loads(remarks)),
        text_id=text_id,
        n_chars=n_chars,
        n_chunks=progress.n_chunks if progress else 0,
        complete=bool(progress and progress.complete),
    )


def read_lines(database: Database, texts: Texts, text_id: TextId, first: int, count: int) -> str:
    """Return up to `count` lines of a text from line `first` (1-based) on.

    Reading starts at the last chunk before that line rather than at the beginning of the text.
    """
    row = database.row(
        "SELECT start, line FROM runs JOIN chunks ON chunks.id BETWEEN first_chunk AND first_chunk + runs.n_chunks - 1"
        " WHERE runs.embedding = (SELECT embeddings.id FROM embeddings JOIN generations ON generations.id = generation"
        " WHERE content = ? AND state = 'serving') AND line < ? ORDER BY chunks.id DESC LIMIT 1",
        (text_id, first),
    )
    position, line = row or (0, 1)
    found: list[str] = []
    while len(found) < count and (text := texts.read(text_id, position, position + BLOCK_CHARS)):
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
