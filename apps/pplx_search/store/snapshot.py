"""What a search needs of one state of an index, in arrays: which rows of the bits file belong to which texts.

Loaded once a state; a warm search reads nothing of it from the database.
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
    """What a filter lets through: a flag for each text's number, and for each row of the bits file; None: every row."""

    contents: np.ndarray
    slots: np.ndarray | None
    n_slots: int


@dataclass(slots=True, eq=False)
class Snapshot:
    """The runs of a generation, ascending in chunks and in slots, and the bits; arrays of int64 but for the bits."""

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
    chunks_with: dict[str, int] = field(default_factory=dict)  # of chunks that hold a word, once asked
    _allowed: "OrderedDict[Filter, Allowed]" = field(default_factory=OrderedDict)

    def chunks_at(self, slots: np.ndarray) -> np.ndarray:
        """Numbers of the chunks whose bits are in rows that belong to chunks, int64."""
        runs = np.searchsorted(self.first_slots, slots, side="right") - 1
        return self.first_chunks[runs] + slots - self.first_slots[runs]

    @property
    def n_chunks(self) -> int:
        """How many chunks there are."""
        return int(self.counts.sum())

    def spread(self, count: int) -> np.ndarray:
        """Numbers of so many chunks, or all, as evenly over the index as can be, int64."""
        ends = np.cumsum(self.counts)
        places = np.unique(np.linspace(0, self.n_chunks - 1, min(count, self.n_chunks)).astype(np.int64))
        runs = np.searchsorted(ends, places, side="right")
        return self.first_chunks[runs] + places - (ends[runs] - self.counts[runs])

    def slots_of(self, chunks: np.ndarray) -> np.ndarray:
        """Rows that hold the bits of chunks that are in this generation, int64."""
        runs = np.searchsorted(self.first_chunks, chunks, side="right") - 1
        return self.first_slots[runs] + chunks - self.first_chunks[runs]

    def contents_of(self, chunks: np.ndarray) -> np.ndarray:
        """Numbers of the texts of chunks, int64; 0, which no text has, for those that are not in this generation."""
        if not len(self.first_chunks):
            return np.zeros(len(chunks), np.int64)
        runs = np.maximum(np.searchsorted(self.first_chunks, chunks, side="right") - 1, 0)
        inside = (chunks >= self.first_chunks[runs]) & (chunks < self.first_chunks[runs] + self.counts[runs])
        return np.where(inside, self.contents[runs], 0)

    def allowed(self, database: Database, wanted: Filter) -> Allowed:
        """What a filter lets through, remembered for the next search."""
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
        edges = np.zeros(self.n_slots + 1, np.int8)  # +1 where a run begins, -1 behind it; runs do not overlap
        np.add.at(edges, self.first_slots[runs], 1)
        np.add.at(edges, self.first_slots[runs] + self.counts[runs], -1)
        return Allowed(contents, np.cumsum(edges[:-1], dtype=np.int8).view(np.bool_), n_slots)


def load_snapshot(
    database: Database, generation: Generation, directory: Path, before: Snapshot | None = None
) -> Snapshot:
    """The present state of a generation; its bits are made from the vectors in memory when the file is not sound.

    Rows that a snapshot `before` this one had looked at are not looked at again, as rows of an epoch never change.
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
    """The rows of a bits file, mapped; None unless all that runs claim is as it was written."""
    bits = file.map(n_slots)
    if bits is None:
        return None
    for slot, count, expected in zip(slots.tolist(), counts.tolist(), checksums.tolist(), strict=True):
        if checksum(bits[slot : slot + count]) != expected:
            return None
    return bits


def made_bits(database: Database, generation: Generation, n_slots: int) -> np.ndarray:
    """The bits of a generation from its vectors, in memory; rows that no run claims are zeros."""
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
    """The condition on live rows of `documents JOIN files JOIN roots` that a filter is, and its values."""
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
