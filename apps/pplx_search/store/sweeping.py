"""Reclaim space: unreferenced texts, retired generations, dead rows of bits files and free pages."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pplx_search.store.bits import BitsFile, in_blocks, remove_others
from pplx_search.store.database import Database
from pplx_search.store.schema import words_table
from pplx_search.store.snapshot import load_snapshot
from pplx_search.store.values import Generation
from pplx_search.store.vectors import RETIRED, drop_chunks

_DEAD_SHARE = 0.25  # of a bits file, above which it is rewritten
_LEAST_DEAD = 256
_UNMERGED_SHARE = 0.25  # of added or deleted chunks, above which the full-text index is rewritten
_CHUNKS_AT_ONCE = 20_000
_PAGES_AT_ONCE = 4096
_UNHELD = "NOT EXISTS (SELECT 1 FROM documents WHERE documents.content = contents.id)"


@dataclass(frozen=True, slots=True)
class Swept:
    """The number of items deleted by a sweep, and the database size in bytes before and after."""

    contents: int
    generations: int
    dead_rows: int
    bytes_before: int
    bytes_after: int


def sweep(database: Database, directory: Path) -> Swept:
    """Delete what is no longer needed and return the space. Searches continue meanwhile, and it can be interrupted."""
    before = _bytes(database)
    contents = _drop_contents(database)
    generations = _drop_generations(database)
    dead = sum(_compact_bits(database, directory, *row) for row in _generations(database))
    _merge_words(database)
    _return_pages(database)
    tidy(database, directory)
    return Swept(contents, generations, dead, before, _bytes(database))


def tidy(database: Database, directory: Path) -> None:
    """Delete bits files without a generation, or from a past epoch."""
    files = [BitsFile(directory, number, epoch, dim) for number, dim, _, epoch in _generations(database)]
    remove_others(directory, files)


def mend(database: Database, directory: Path) -> list[int]:
    """Rebuild bits files that are missing, truncated or invalid, and return the affected generation ids."""
    mended = []
    for number, dim, _, epoch in _generations(database):
        snapshot = load_snapshot(database, Generation(number, "", {}, dim, False), directory)
        if snapshot.mended:
            BitsFile(directory, number, epoch, dim).create(in_blocks(snapshot.bits))
            mended.append(number)
    return mended


def _drop_contents(database: Database) -> int:
    """Delete texts without documents, in small transactions that do not block others for long."""
    dropped = last = 0
    while found := database.rows(f"SELECT id FROM contents WHERE id > ? AND {_UNHELD} ORDER BY id LIMIT 64", (last,)):
        with database.transaction():
            for (content,) in found:
                for (embedding,) in database.rows("SELECT id FROM embeddings WHERE content = ?", (content,)):
                    drop_chunks(database, embedding)
                database.run("DELETE FROM embeddings WHERE content = ?", (content,))
                database.run("DELETE FROM blocks WHERE content = ?", (content,))
                database.run("DELETE FROM contents WHERE id = ?", (content,))
            database.step("contents dropped")
        dropped, last = dropped + len(found), found[-1][0]
    return dropped


def _drop_generations(database: Database) -> int:
    retired = database.rows("SELECT id FROM generations WHERE state = ?", (RETIRED,))
    for (generation,) in retired:
        while database.row("SELECT 1 FROM embeddings WHERE generation = ? LIMIT 1", (generation,)):
            with database.transaction():
                _drop_embeddings(database, generation)
                database.step("embeddings dropped")
        with database.transaction():
            database.run(f"DROP TABLE IF EXISTS {words_table(generation)}")
            database.run("DELETE FROM generations WHERE id = ?", (generation,))
            database.step("generation dropped")
    return len(retired)


def _drop_embeddings(database: Database, generation: int) -> None:
    """Delete a batch of vectors of a retired generation. Its full-text table is dropped as a whole at the end."""
    n_chunks = 0
    for embedding, count in database.rows(
        "SELECT id, n_chunks FROM embeddings WHERE generation = ? ORDER BY id LIMIT 1000", (generation,)
    ):
        if n_chunks and n_chunks + count > _CHUNKS_AT_ONCE:
            break
        for first, length in database.rows("SELECT first_chunk, n_chunks FROM runs WHERE embedding = ?", (embedding,)):
            database.run("DELETE FROM chunks WHERE id BETWEEN ? AND ?", (first, first + length - 1))
        database.run("DELETE FROM runs WHERE embedding = ?", (embedding,))
        database.run("DELETE FROM embeddings WHERE id = ?", (embedding,))
        n_chunks += count


def _compact_bits(database: Database, directory: Path, generation: int, dim: int, n_slots: int, epoch: int) -> int:
    """Rewrite a bits file without its dead rows, as the next epoch, if it has many. Returns the number removed."""
    with database.transaction():
        runs = database.rows(
            "SELECT first_chunk, runs.n_chunks, slot FROM runs JOIN embeddings ON embeddings.id = embedding"
            " WHERE generation = ? ORDER BY first_chunk",
            (generation,),
        )
        n_live = sum(count for _, count, _ in runs)
        n_dead = n_slots - n_live
        if n_dead < max(_LEAST_DEAD, _DEAD_SHARE * n_slots) and (n_live or not n_dead):
            return 0
        bits = load_snapshot(database, Generation(generation, "", {}, dim, False), directory).bits
        new = BitsFile(directory, generation, epoch + 1, dim)
        new.create(_moved(bits, runs))
        database.step("bits compacted")
        slot = 0
        for first, count, _ in runs:
            database.run("UPDATE runs SET slot = ? WHERE first_chunk = ?", (slot, first))
            slot += count
        database.run("UPDATE generations SET next_slot = ?, epoch = ? WHERE id = ?", (n_live, epoch + 1, generation))
    return n_dead


def _moved(bits: np.ndarray, runs: list[tuple[int, int, int]]) -> Iterator[np.ndarray]:
    for _, count, slot in runs:
        yield bits[slot : slot + count]


def _merge_words(database: Database) -> None:
    """Optimize the full-text indexes if many chunks were added or deleted, which also frees deleted rows."""
    unmerged = database.value("SELECT value FROM counters WHERE name = 'unmerged'")
    n_chunks = database.value("SELECT coalesce(sum(n_chunks), 0) FROM embeddings")
    if not unmerged or unmerged < _UNMERGED_SHARE * n_chunks:
        return
    for table in ["names", *(words_table(row[0]) for row in _generations(database))]:
        with database.transaction():
            database.run(f"INSERT INTO {table}({table}) VALUES ('optimize')")
            database.step("words merged")
    with database.transaction():
        database.run("UPDATE counters SET value = 0 WHERE name = 'unmerged'")


def _return_pages(database: Database) -> None:
    """Truncate free pages from the file, then truncate the log."""
    while (free := database.pragma("freelist_count")) > 0:
        with database.transaction():
            database.rows(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})")
            database.step("pages returned")
        if database.pragma("freelist_count") >= free:
            break
    database.checkpoint()


def _generations(database: Database) -> list[tuple[int, int, int, int]]:
    rows = database.rows("SELECT id, dim, next_slot, epoch FROM generations ORDER BY id")
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def _bytes(database: Database) -> int:
    return database.pragma("page_count") * database.pragma("page_size")
