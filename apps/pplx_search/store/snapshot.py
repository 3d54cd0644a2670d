"""A snapshot of the serving generation: in-memory arrays that map rows of the bits file to chunks and texts.

The arrays are loaded once per state of the index, so that repeated searches do not load them again.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pplx_search.ids import ChunkId, TextId
from pplx_search.query.kernels import row_bytes, signs
from pplx_search.query.snapshot import Passing
from pplx_search.query.types import EVERYTHING, Filter
from pplx_search.store.bits import BitsFile, checksum
from pplx_search.store.database import Database
from pplx_search.store.files import inside
from pplx_search.store.schema import words_table
from pplx_search.store.values import Generation

_CACHED_FILTERS = 32
_REBUILD_ROWS = 4096


@dataclass(slots=True, eq=False)
class GenerationSnapshot:
    """The state of a generation, as `query.snapshot.Snapshot` describes it.

    A run is a range of consecutive chunk ids of one text with consecutive slots. `first_chunks`, `counts`,
    `first_slots` and `text_ids` describe the runs, int64, in ascending order of chunks and slots. `rebuilt` is True if
    the bits file was invalid and the bits were computed from the vectors.
    """

    generation: Generation
    epoch: int
    n_slots: int
    first_chunks: np.ndarray
    counts: np.ndarray
    first_slots: np.ndarray
    text_ids: np.ndarray
    bits: np.ndarray
    max_text_id: int
    rebuilt: bool
    _database: Database
    _counts_of_terms: dict[tuple[str, int], int] = field(default_factory=dict)
    _passing: "OrderedDict[Filter, Passing]" = field(default_factory=OrderedDict)

    @property
    def dim(self) -> int:
        """The dimension of the vectors."""
        return self.generation.dim

    @property
    def n_chunks(self) -> int:
        """The number of chunks."""
        return int(self.counts.sum())

    def chunks_at(self, slots: np.ndarray) -> np.ndarray:
        """See `Snapshot`."""
        runs = np.searchsorted(self.first_slots, slots, side="right") - 1
        return self.first_chunks[runs] + slots - self.first_slots[runs]

    def slots_of(self, chunk_ids: np.ndarray) -> np.ndarray:
        """See `Snapshot`."""
        runs = self._runs_of(chunk_ids)
        return self.first_slots[runs] + chunk_ids - self.first_chunks[runs]

    def text_ids_of(self, chunk_ids: np.ndarray) -> np.ndarray:
        """See `Snapshot`."""
        return self.text_ids[self._runs_of(chunk_ids)]

    def first_chunk(self, text_id: TextId) -> ChunkId | None:
        """See `Snapshot`."""
        runs = np.flatnonzero(self.text_ids == text_id)
        return ChunkId(int(self.first_chunks[runs[0]])) if len(runs) else None

    def sample(self, count: int) -> np.ndarray:
        """Return the ids of `count` evenly spaced chunks, or of all if there are fewer, int64."""
        ends = np.cumsum(self.counts)
        places = np.unique(np.linspace(0, self.n_chunks - 1, min(count, self.n_chunks)).astype(np.int64))
        runs = np.searchsorted(ends, places, side="right")
        return self.first_chunks[runs] + places - (ends[runs] - self.counts[runs])

    def codes(self, chunk_ids: np.ndarray) -> np.ndarray:
        """See `Snapshot`."""
        order = np.argsort(chunk_ids)  # read neighboring rows of the file together
        rows = np.empty((len(chunk_ids), self.dim), np.int8)
        self._database.read_blobs("chunks", "codes", chunk_ids[order].tolist(), rows.data.cast("B"), self.dim)
        unsorted = np.empty_like(rows)
        unsorted[order] = rows
        return unsorted

    def matches(self, expression: str) -> Iterator[tuple[ChunkId, float]]:
        """See `Snapshot`."""
        table = words_table(self.generation.id)
        sql = f"SELECT rowid, -bm25({table}) AS score FROM {table} WHERE {table} MATCH ? ORDER BY score DESC, rowid"
        return ((chunk_id, score) for chunk_id, score in self._database.each(sql, (expression,)))

    def n_chunks_with(self, term: str, limit: int) -> int:
        """See `Snapshot`."""
        if (term, limit) not in self._counts_of_terms:
            table = words_table(self.generation.id)
            sql = f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {table} MATCH ? LIMIT ?)"
            self._counts_of_terms[term, limit] = self._database.value(sql, (term, limit))
        return self._counts_of_terms[term, limit]

    def texts_named(self, expression: str, limit: int) -> list[TextId]:
        """See `Snapshot`."""
        rows = self._database.rows(
            "SELECT DISTINCT content FROM (SELECT content FROM names JOIN documents ON documents.id = names.rowid"
            " WHERE names MATCH ? ORDER BY rank, documents.id LIMIT ?)",
            (expression, limit),
        )
        return [text_id for (text_id,) in rows]

    def passing(self, wanted: Filter) -> Passing:
        """See `Snapshot`. The results of recent filters are kept for the next search."""
        if wanted not in self._passing:
            self._passing[wanted] = self._look_up(wanted)
            while len(self._passing) > _CACHED_FILTERS:
                self._passing.popitem(last=False)
        self._passing.move_to_end(wanted)
        return self._passing[wanted]

    def _runs_of(self, chunk_ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.first_chunks, chunk_ids, side="right") - 1

    def _look_up(self, wanted: Filter) -> Passing:
        condition, values = filter_sql(wanted)
        rows = self._database.rows(
            "SELECT DISTINCT documents.content FROM documents JOIN files ON files.id = file"
            f" JOIN roots ON roots.id = root WHERE {condition}",
            values,
        )
        texts = np.zeros(self.max_text_id + 1, np.bool_)
        texts[np.fromiter((row[0] for row in rows), np.int64, len(rows))] = True
        runs = texts[self.text_ids]
        n_slots = int(self.counts[runs].sum())
        if n_slots == self.n_slots:
            return Passing(texts, None, n_slots)
        edges = np.zeros(self.n_slots + 1, np.int8)  # +1 at the start of a run, -1 after its end; runs do not overlap
        np.add.at(edges, self.first_slots[runs], 1)
        np.add.at(edges, self.first_slots[runs] + self.counts[runs], -1)
        return Passing(texts, np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_), n_slots)


def load_snapshot(
    database: Database, generation: Generation, directory: Path, before: GenerationSnapshot | None = None
) -> GenerationSnapshot:
    """Return the current state of a generation. If the bits file is invalid, the bits are rebuilt in memory.

    Rows that the previous snapshot `before` has verified are not verified again, because the rows of an epoch never
    change.
    """
    n_slots, epoch = database.rows("SELECT next_slot, epoch FROM generations WHERE id = ?", (generation.id,))[0]
    runs = database.rows(
        "SELECT first_chunk, runs.n_chunks, slot, content, checksum FROM runs JOIN embeddings"
        " ON embeddings.id = embedding WHERE generation = ? ORDER BY first_chunk",
        (generation.id,),
    )
    table = np.array(runs, np.int64).reshape(len(runs), 5)
    first_chunks, counts, first_slots, text_ids, checksums = (np.ascontiguousarray(column) for column in table.T)
    n_verified = 0
    if before is not None and not before.rebuilt and (before.generation.id, before.epoch) == (generation.id, epoch):
        n_verified = before.n_slots
    new = first_slots + counts > n_verified
    file = BitsFile(directory, generation.id, epoch, generation.dim)
    bits = verified_bits(file, n_slots, first_slots[new], counts[new], checksums[new])
    return GenerationSnapshot(
        generation=generation,
        epoch=epoch,
        n_slots=n_slots,
        first_chunks=first_chunks,
        counts=counts,
        first_slots=first_slots,
        text_ids=text_ids,
        bits=rebuilt_bits(database, generation, n_slots) if bits is None else bits,
        max_text_id=database.value("SELECT coalesce(max(id), 0) FROM contents"),
        rebuilt=bits is None,
        _database=database,
    )


def verified_bits(
    file: BitsFile, n_slots: int, slots: np.ndarray, counts: np.ndarray, checksums: np.ndarray
) -> np.ndarray | None:
    """Return the memory-mapped rows of a bits file, or None if the checksum of any run does not match."""
    bits = file.map(n_slots)
    if bits is None:
        return None
    for slot, count, expected in zip(slots.tolist(), counts.tolist(), checksums.tolist(), strict=True):
        if checksum(bits[slot : slot + count]) != expected:
            return None
    return bits


def rebuilt_bits(database: Database, generation: Generation, n_slots: int) -> np.ndarray:
    """Return the bits of a generation, computed from its vectors, uint8 `[n_slots, W]`. Rows without a run are zero."""
    bits = np.zeros((n_slots, row_bytes(generation.dim)), np.uint8)
    rows = database.each(
        "SELECT slot + chunks.id - first_chunk, codes FROM runs JOIN embeddings ON embeddings.id = runs.embedding"
        " JOIN chunks ON chunks.id BETWEEN first_chunk AND first_chunk + runs.n_chunks - 1 WHERE generation = ?",
        (generation.id,),
    )
    while block := [row for _, row in zip(range(_REBUILD_ROWS), rows, strict=False)]:
        codes = np.frombuffer(b"".join(row[1] for row in block), np.int8).reshape(len(block), generation.dim)
        bits[[row[0] for row in block]] = signs(codes)
    return bits


def filter_sql(wanted: Filter) -> tuple[str, list[Any]]:
    """Return a filter as an SQL condition on `documents JOIN files JOIN roots`, live rows only, and its values."""
    parts, values = ["documents.live"], []
    if wanted == EVERYTHING:
        return parts[0], values
    if wanted.collections:
        marks = ", ".join("?" * len(wanted.collections))
        parts.append(f"roots.collection IN (SELECT id FROM collections WHERE name IN ({marks}))")
        values += wanted.collections
    if wanted.folders:
        each = "files.path = ? OR (files.path >= ? AND files.path < ?)"
        parts.append(f"({' OR '.join([each] * len(wanted.folders))})")
        for folder in wanted.folders:
            values += [folder.rstrip(b"/") or b"/", *inside(folder)]
    if wanted.kinds:
        parts.append(f"documents.kind IN ({', '.join('?' * len(wanted.kinds))})")
        values += wanted.kinds
    date = "coalesce(documents.date, files.mtime_ns / 1e9)"
    for bound, sign in ((wanted.since, ">="), (wanted.until, "<")):
        if bound is not None:
            parts.append(f"{date} {sign} ?")
            values.append(bound)
    for column, text in (("author", wanted.author), ("recipient", wanted.recipient)):
        if text:
            parts.append(f"contains(documents.{column}, ?)")
            values.append(text)
    return " AND ".join(parts), values
