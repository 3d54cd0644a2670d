"""Check every invariant of an index and describe each violation."""

import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from pplx_search.query.kernels import signs
from pplx_search.store.bits import BitsFile, checksum
from pplx_search.store.database import Database
from pplx_search.store.schema import words_table
from pplx_search.store.texts import BLOCK_CHARS, unpacked

_ROWS = 4096

_VIOLATIONS = {  # problem, and a query that returns the affected rows
    "embeddings of a missing text": "SELECT embeddings.id FROM embeddings LEFT JOIN contents"
    " ON contents.id = content WHERE contents.id IS NULL",
    "chunks of a missing embedding": "SELECT chunks.id FROM chunks LEFT JOIN embeddings ON embeddings.id = embedding"
    " WHERE embeddings.id IS NULL",
    "chunks without a run, or in a run of another embedding": "SELECT chunks.id FROM chunks WHERE NOT EXISTS"
    " (SELECT 1 FROM runs WHERE runs.embedding = chunks.embedding AND chunks.id BETWEEN first_chunk"
    " AND first_chunk + n_chunks - 1)",
    "embeddings with a wrong chunk count": "SELECT id FROM embeddings WHERE n_chunks <> (SELECT"
    " coalesce(sum(runs.n_chunks), 0) FROM runs WHERE embedding = embeddings.id)",
    "runs with missing chunks": "SELECT first_chunk FROM runs WHERE n_chunks <> (SELECT count(*) FROM chunks"
    " WHERE id BETWEEN first_chunk AND first_chunk + n_chunks - 1 AND chunks.embedding = runs.embedding)",
    "chunks out of order": "SELECT a.id FROM chunks AS a JOIN chunks AS b ON b.id = a.id + 1 AND"
    " b.embedding = a.embedding WHERE b.ordinal <> a.ordinal + 1",
    "chunks outside their text": "SELECT chunks.id FROM chunks JOIN embeddings ON embeddings.id = embedding JOIN"
    " contents ON contents.id = content WHERE NOT (0 <= start AND start <= stop AND stop <= n_chars)",
    "complete embeddings with a resume position, or unfinished ones without": "SELECT id FROM embeddings WHERE"
    " (position IS NOT NULL) <> (n_chunks > 0 AND NOT complete)",
    "indexed files with missing vectors": "SELECT files.id FROM files JOIN documents ON file = files.id"
    " WHERE files.state = 'indexed' AND live AND NOT EXISTS (SELECT 1 FROM embeddings JOIN generations ON"
    " generations.id = generation WHERE embeddings.content = documents.content AND generations.state = 'serving'"
    " AND embeddings.complete)",
    "indexed files that are incomplete or have hidden documents": "SELECT files.id FROM files WHERE state = 'indexed'"
    " AND (NOT complete OR EXISTS (SELECT 1 FROM documents WHERE file = files.id AND NOT live))",
    "skipped files with documents": "SELECT files.id FROM files JOIN documents ON file = files.id"
    " WHERE state = 'skipped'",
    "live documents missing from the name index": "SELECT id FROM documents WHERE live EXCEPT SELECT rowid FROM names",
    "names without a live document": "SELECT rowid FROM names EXCEPT SELECT id FROM documents WHERE live",
    "next chunk id is already used": "SELECT value FROM counters WHERE name = 'next_chunk' AND value <= (SELECT"
    " coalesce(max(id), 0) FROM chunks)",
}


def problems(database: Database, directory: Path) -> list[str]:
    """Return the problems of an index as messages, an empty list if it is sound. Reads the whole index once."""
    with database.reading():
        return list(_problems(database, directory))


def _problems(database: Database, directory: Path) -> Iterator[str]:
    for (table,) in database.rows("SELECT name FROM sqlite_schema WHERE sql LIKE 'CREATE VIRTUAL TABLE%'"):
        # Opening a cursor makes FTS5 notice other writers; integrity_check alone would use its cached state.
        database.row(f"SELECT rowid FROM {table} LIMIT 1")
    for (result,) in database.rows("PRAGMA integrity_check(10)"):
        if result != "ok":
            yield f"the database is damaged: {result}"
    for table, row, parent, _ in database.rows("PRAGMA foreign_key_check"):
        yield f"{table} {row} refers to a missing row of {parent}"
    for problem, query in _VIOLATIONS.items():
        found = [row[0] for row in database.rows(f"{query} LIMIT 4")]
        if found:
            yield f"{problem}: {', '.join(map(str, found[:3]))}{' …' if len(found) > 3 else ''}"
    yield from _texts(database)
    generations = database.rows("SELECT id, dim, next_slot, epoch, state FROM generations")
    for generation_id, dim, n_slots, epoch, state in generations:
        if state != "retired":  # retired generations are being deleted
            yield from _words(database, generation_id)
            yield from _bits(database, BitsFile(directory, generation_id, epoch, dim), n_slots)


def _texts(database: Database) -> Iterator[str]:
    for text_id, n_chars in database.rows("SELECT id, n_chars FROM contents"):
        length = 0
        blocks = database.each("SELECT number, data FROM blocks WHERE content = ? ORDER BY number", (text_id,))
        for expected, (number, data) in enumerate(blocks):
            try:
                text = unpacked(data)
            except (zlib.error, OSError, ValueError) as error:
                yield f"text {text_id}, block {number} cannot be read: {error}"
                continue
            if number != expected or length != number * BLOCK_CHARS:
                yield f"text {text_id} is missing a block before block {number}"
            length += len(text)
        if length != n_chars:
            yield f"text {text_id} has {length:,} characters instead of {n_chars:,}"


def _words(database: Database, generation_id: int) -> Iterator[str]:
    table = words_table(generation_id)
    chunks = "SELECT chunks.id FROM chunks JOIN embeddings ON embeddings.id = embedding WHERE generation = ?"
    for problem, query in (
        ("chunks missing from the full-text index", f"{chunks} EXCEPT SELECT rowid FROM {table}"),
        ("full-text rows without a chunk", f"SELECT rowid FROM {table} EXCEPT {chunks}"),
    ):
        found = database.rows(f"{query} LIMIT 3", (generation_id,))
        if found:
            yield f"{problem}: {', '.join(str(row[0]) for row in found)}"


def _bits(database: Database, file: BitsFile, n_slots: int) -> Iterator[str]:
    runs = database.rows(
        "SELECT slot, runs.n_chunks, first_chunk, checksum FROM runs JOIN embeddings ON embeddings.id = embedding"
        " WHERE generation = ? ORDER BY slot",
        (file.generation,),
    )
    for (slot, count, first, _), (following, *_) in pairwise([*runs, (n_slots, 0, 0, 0)]):
        if slot + count > following:
            yield f"chunk {first} and those after it share rows of the bits file with other chunks"
    if sorted(runs, key=lambda run: run[2]) != runs:
        yield f"generation {file.generation}: the rows of the bits file are not in chunk order"
    bits = file.map(n_slots)
    if bits is None:
        yield f"{file.path.name} is missing, truncated or invalid; opening the index for writing repairs it"
        return
    for slot, count, first, expected in runs:
        if checksum(bits[slot : slot + count]) != expected or not _are_signs(database, file, bits, slot, first, count):
            yield f"{file.path.name}: rows from {slot} on do not match the signs of the vectors from chunk {first} on"


def _are_signs(database: Database, file: BitsFile, bits: np.ndarray, slot: int, first: int, count: int) -> bool:
    for start in range(0, count, _ROWS):
        n_rows = min(_ROWS, count - start)
        rows = database.rows(
            "SELECT codes FROM chunks WHERE id BETWEEN ? AND ? ORDER BY id",
            (first + start, first + start + n_rows - 1),
        )
        if len(rows) != n_rows or any(len(row[0]) != file.dim for row in rows):
            return False
        codes = np.frombuffer(b"".join(row[0] for row in rows), np.int8).reshape(n_rows, file.dim)
        if not np.array_equal(signs(codes), bits[slot + start : slot + start + n_rows]):
            return False
    return True
