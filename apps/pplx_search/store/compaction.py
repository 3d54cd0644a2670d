"""Reclaim the space of unreferenced texts, retired generations, unused rows of bits files and free pages."""

from pathlib import Path

from pplx_search.store.bits import BitsFile, in_blocks, remove_others
from pplx_search.store.database import Database
from pplx_search.store.schema import words_table
from pplx_search.store.snapshot import load_snapshot
from pplx_search.store.values import Compaction, Generation
from pplx_search.store.vectors import RETIRED, drop_chunks

_UNUSED_SHARE = 0.25  # of a bits file, above which it is rewritten
_MIN_UNUSED = 256
_UNMERGED_SHARE = 0.25  # of added or deleted chunks, above which the full-text index is rewritten
_CHUNKS_AT_ONCE = 20_000
_PAGES_AT_ONCE = 4096
_UNREFERENCED = "NOT EXISTS (SELECT 1 FROM documents WHERE documents.content = contents.id)"


def compact(database: Database, directory: Path) -> Compaction:
    """Delete what is no longer needed and return the space. Searches continue meanwhile, and it can be interrupted."""
    before = _bytes(database)
    texts = _drop_texts(database)
    generations = _drop_generations(database)
    slots = sum(_compact_bits(database, directory, *row) for row in _generations(database))
    _merge_words(database)
    _return_pages(database)
    remove_old_bits(database, directory)
    return Compaction(texts, generations, slots, before, _bytes(database))


def remove_old_bits(database: Database, directory: Path) -> None:
    """Delete bits files without a generation, or from a past epoch."""
    files = [BitsFile(directory, generation_id, epoch, dim) for generation_id, dim, _, epoch in _generations(database)]
    remove_others(directory, files)


def repair_bits(database: Database, directory: Path) -> None:
    """Rebuild bits files that are missing, truncated or invalid."""
    for generation_id, dim, _, epoch in _generations(database):
        snapshot = load_snapshot(database, Generation(generation_id, "", {}, dim, False), directory)
        if snapshot.rebuilt:
            BitsFile(directory, generation_id, epoch, dim).create(in_blocks(snapshot.bits))


def _drop_texts(database: Database) -> int:
    """Delete texts without documents, in small transactions that do not block others for long. Returns their number."""
    n_dropped = last = 0
    sql = f"SELECT id FROM contents WHERE id > ? AND {_UNREFERENCED} ORDER BY id LIMIT 64"
    while found := database.rows(sql, (last,)):
        with database.transaction():
            for (text_id,) in found:
                for (embedding_id,) in database.rows("SELECT id FROM embeddings WHERE content = ?", (text_id,)):
                    drop_chunks(database, embedding_id)
                database.run("DELETE FROM embeddings WHERE content = ?", (text_id,))
                database.run("DELETE FROM blocks WHERE content = ?", (text_id,))
                database.run("DELETE FROM contents WHERE id = ?", (text_id,))
            database.step("texts dropped")
        n_dropped, last = n_dropped + len(found), found[-1][0]
    return n_dropped


def _drop_generations(database: Database) -> int:
    """Delete the retired generations and return their number."""
    retired = database.rows("SELECT id FROM generations WHERE state = ?", (RETIRED,))
    for (generation_id,) in retired:
        while database.row("SELECT 1 FROM embeddings WHERE generation = ? LIMIT 1", (generation_id,)):
            with database.transaction():
                _drop_embeddings(database, generation_id)
                database.step("embeddings dropped")
        with database.transaction():
            database.run(f"DROP TABLE IF EXISTS {words_table(generation_id)}")
            database.run("DELETE FROM generations WHERE id = ?", (generation_id,))
            database.step("generation dropped")
    return len(retired)


def _drop_embeddings(database: Database, generation_id: int) -> None:
    """Delete a batch of vectors of a retired generation. Its full-text table is dropped as a whole at the end."""
    n_chunks = 0
    for embedding_id, count in database.rows(
        "SELECT id, n_chunks FROM embeddings WHERE generation = ? ORDER BY id LIMIT 1000", (generation_id,)
    ):
        if n_chunks and n_chunks + count > _CHUNKS_AT_ONCE:
            break
        runs = database.rows("SELECT first_chunk, n_chunks FROM runs WHERE embedding = ?", (embedding_id,))
        for first, length in runs:
            database.run("DELETE FROM chunks WHERE id BETWEEN ? AND ?", (first, first + length - 1))
        database.run("DELETE FROM runs WHERE embedding = ?", (embedding_id,))
        database.run("DELETE FROM embeddings WHERE id = ?", (embedding_id,))
        n_chunks += count


def _compact_bits(database: Database, directory: Path, generation_id: int, dim: int, n_slots: int, epoch: int) -> int:
    """Rewrite a bits file without its unused rows, as the next epoch, if it has many. Returns the number removed."""
    with database.transaction():
        runs = database.rows(
            "SELECT first_chunk, runs.n_chunks, slot FROM runs JOIN embeddings ON embeddings.id = embedding"
            " WHERE generation = ? ORDER BY first_chunk",
            (generation_id,),
        )
        n_used = sum(count for _, count, _ in runs)
        n_unused = n_slots - n_used
        if n_unused < max(_MIN_UNUSED, _UNUSED_SHARE * n_slots) and (n_used or not n_unused):
            return 0
        bits = load_snapshot(database, Generation(generation_id, "", {}, dim, False), directory).bits
        new = BitsFile(directory, generation_id, epoch + 1, dim)
        new.create(bits[slot : slot + count] for _, count, slot in runs)
        database.step("bits compacted")
        slot = 0
        for first, count, _ in runs:
            database.run("UPDATE runs SET slot = ? WHERE first_chunk = ?", (slot, first))
            slot += count
        database.run("UPDATE generations SET next_slot = ?, epoch = ? WHERE id = ?", (n_used, epoch + 1, generation_id))
    return n_unused


def _merge_words(database: Database) -> None:
    """Optimize the full-text indexes if many chunks were added or deleted. This also frees deleted rows."""
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
    """Return the id, dimension, number of slots and epoch of each generation."""
    rows = database.rows("SELECT id, dim, next_slot, epoch FROM generations ORDER BY id")
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def _bytes(database: Database) -> int:
    return database.pragma("page_count") * database.pragma("page_size")
