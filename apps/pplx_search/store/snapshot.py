"""An in-memory snapshot of one index state: arrays that map rows of the bits file to chunks and texts.

It is loaded once per state, so that repeated searches do not read it from the database again.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pplx_search.store.bits import BitsFile, checksum, signs
from pplx_search.store.database import Database
from pplx_search.store.files import below
from pplx_search.store.values import EVERYTHING, Filter, Generation

_CACHED_FILTERS = 32
_REBUILD_ROWS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Allowed:
    """The result of a filter: a flag per text id, and per row of the bits file (None: every row passes)."""

    contents: np.ndarray
    slots: np.ndarray | None
    n_slots: int


@dataclass(slots=True, eq=False)
class Snapshot:
    """The runs of a generation as int64 arrays, in ascending order of chunks and slots, and its rows of sign bits."""

    generation: Generation
    epoch: int
    n_slots: int
    first_chunks: np.ndarray
    counts: np.ndarray
    first_slots: np.ndarray
    contents: np.ndarray
    bits: np.ndarray
    n_contents: int
    mended: bool
    chunks_with: dict[str, int] = field(default_factory=dict)  # cached number of chunks per word
    _allowed: "OrderedDict[Filter, Allowed]" = field(default_factory=OrderedDict)

    def chunks_at(self, slots: np.ndarray) -> np.ndarray:
        """Return the chunk ids of used rows of the bits file, int64."""
        runs = np.searchsorted(self.first_slots, slots, side="right") - 1
        return self.first_chunks[runs] + slots - self.first_slots[runs]

    @property
    def n_chunks(self) -> int:
        """The number of chunks."""
        return int(self.counts.sum())

    def spread(self, count: int) -> np.ndarray:
        """Return the ids of `count` chunks, or all if there are fewer, spread evenly over the index, int64."""
        ends = np.cumsum(self.counts)
        places = np.unique(np.linspace(0, self.n_chunks - 1, min(count, self.n_chunks)).astype(np.int64))
        runs = np.searchsorted(ends, places, side="right")
        return self.first_chunks[runs] + places - (ends[runs] - self.counts[runs])

    def slots_of(self, chunks: np.ndarray) -> np.ndarray:
        """Return the rows of the bits file of chunks in this generation, int64."""
        runs = np.searchsorted(self.first_chunks, chunks, side="right") - 1
        return self.first_slots[runs] + chunks - self.first_chunks[runs]

    def contents_of(self, chunks: np.ndarray) -> np.ndarray:
        """Return the text ids of chunks, int64; 0 (never a valid id) for chunks that are not in this generation."""
        if not len(self.first_chunks):
            return np.zeros(len(chunks), np.int64)
        runs = np.maximum(np.searchsorted(self.first_chunks, chunks, side="right") - 1, 0)
        inside = (chunks >= self.first_chunks[runs]) & (chunks < self.first_chunks[runs] + self.counts[runs])
        return np.where(inside, self.contents[runs], 0)

    def allowed(self, database: Database, wanted: Filter) -> Allowed:
        """Return the texts and rows that pass a filter, cached for the next search."""
        if wanted not in self._allowed:
            self._allowed[wanted] = self._look_up(database, wanted)
            while len(self._allowed) > _CACHED_FILTERS:
                self._allowed.popitem(last=False)
        self._allowed.move_to_end(wanted)
        return self._allowed[wanted]

    def _look_up(self, database: Database, wanted: Filter) -> Allowed:
        condition, values = filter_sql(wanted)
        found = database.rows(
            "SELECT DISTINCT documents.content FROM documents JOIN files ON files.id = file"
            f" JOIN roots ON roots.id = root WHERE {condition}",
            values,
        )
        contents = np.zeros(self.n_contents + 1, np.bool_)
        contents[np.fromiter((row[0] for row in found), np.int64, len(found))] = True
        runs = contents[self.contents]
        n_slots = int(self.counts[runs].sum())
        if n_slots == self.n_slots:
            return Allowed(contents, None, n_slots)
        edges = np.zeros(self.n_slots + 1, np.int8)  # +1 at the start of a run, -1 after its end; runs do not overlap
        np.add.at(edges, self.first_slots[runs], 1)
        np.add.at(edges, self.first_slots[runs] + self.counts[runs], -1)
        return Allowed(contents, np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_), n_slots)


def load_snapshot(
    database: Database, generation: Generation, directory: Path, before: Snapshot | None = None
) -> Snapshot:
    """Load the current state of a generation. If the bits file is invalid, the bits are rebuilt in memory.

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
    first_chunks, counts, first_slots, contents, checksums = (np.ascontiguousarray(column) for column in table.T)
    known = 0
    if before is not None and not before.mended and (before.generation.id, before.epoch) == (generation.id, epoch):
        known = before.n_slots
    fresh = first_slots + counts > known
    file = BitsFile(directory, generation.id, epoch, generation.dim)
    bits = sound_bits(file, n_slots, first_slots[fresh], counts[fresh], checksums[fresh])
    mended = bits is None
    if bits is None:
        bits = made_bits(database, generation, n_slots)
    return Snapshot(
        generation=generation,
        epoch=epoch,
        n_slots=n_slots,
        first_chunks=first_chunks,
        counts=counts,
        first_slots=first_slots,
        contents=contents,
        bits=bits,
        n_contents=database.value("SELECT coalesce(max(id), 0) FROM contents"),
        mended=mended,
    )


def sound_bits(
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


def made_bits(database: Database, generation: Generation, n_slots: int) -> np.ndarray:
    """Build the bits of a generation from its vectors, in memory. Rows without a run are zero."""
    bits = np.zeros((n_slots, signs(np.zeros((1, generation.dim), np.int8)).shape[1]), np.uint8)
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
            values += [folder.rstrip(b"/") or b"/", *below(folder)]
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
            parts.append(f"holds(documents.{column}, ?)")
            values.append(text)
    return " AND ".join(parts), values
