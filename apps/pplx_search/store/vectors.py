"""Generations of vectors, and appending the vectors of texts to them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge import ChunkVector
from pplx_edge.errors import InputError
from pplx_search.ids import ChunkId, EmbeddingId, TextId
from pplx_search.query.full_text import searchable
from pplx_search.query.kernels import signs
from pplx_search.query.types import NullBaseline
from pplx_search.settings import with_current_names
from pplx_search.store.bits import BitsFile, checksum
from pplx_search.store.database import Database
from pplx_search.store.schema import create_words, words_table
from pplx_search.store.texts import Texts
from pplx_search.store.values import EmbeddingProgress, Generation

SERVING, BUILDING, RETIRED = "serving", "building", "retired"
_GENERATION = "SELECT id, fingerprint, settings, dim, state FROM generations WHERE "
_REFERENCED = "EXISTS (SELECT 1 FROM documents WHERE documents.content = contents.id)"
_BASELINE_KEYS = {  # field, and its name in the database
    "n_chunks": "n_chunks",
    "n_sentences": "n_sentences",
    "cosine_z_mean": "prominence",
    "cosine_z_std": "prominence_spread",
    "bm25_share_mean": "share_of_words",
    "bm25_share_std": "share_of_words_spread",
}


class Vectors:
    """The vectors of an index, by generation and text."""

    def __init__(self, database: Database, directory: Path, texts: Texts):
        self._database, self._directory, self._texts = database, directory, texts

    @property
    def serving(self) -> Generation | None:
        """The generation that searches use, or None in an index without vectors."""
        return self._one("state = ?", SERVING)

    @property
    def building(self) -> Generation | None:
        """The generation being built to replace the serving one, or None."""
        return self._one("state = ?", BUILDING)

    def use(self, fingerprint: str, settings: Mapping[str, Any], dim: int) -> Generation:
        """Return the generation for a fingerprint, which covers the weights and all settings that affect vectors.

        The first generation of an index serves immediately. A second one is built alongside it and serves after
        `switch`. Any other unfinished generation is retired.
        """
        with self._database.transaction():
            found = self._one("fingerprint = ?", fingerprint)
            if found is not None:
                if found.dim != dim:
                    raise InputError(f"this model has {found.dim} dimensions in the index, but now {dim}")
                return found
            self._database.run(
                "UPDATE generations SET state = ?, fingerprint = NULL WHERE state = ?", (RETIRED, BUILDING)
            )
            state = SERVING if self.serving is None else BUILDING
            generation_id = self._database.insert(
                "INSERT INTO generations(fingerprint, settings, dim, state) VALUES (?, ?, ?, ?)",
                (fingerprint, json.dumps(dict(settings), sort_keys=True), dim, state),
            )
            create_words(self._database.connection, generation_id)
            BitsFile(self._directory, generation_id, 1, dim).create()
        return Generation(generation_id, fingerprint, settings, dim, state == SERVING)

    def begin(self, text_id: TextId, generation: Generation) -> EmbeddingProgress:
        """Return the embedding progress of a text, starting a new embedding if it has none."""
        with self._database.transaction():
            found = self.progress(text_id, generation)
            if found is not None:
                return found
            embedding_id = self._database.insert(
                "INSERT INTO embeddings(content, generation) VALUES (?, ?)", (text_id, generation.id)
            )
        return EmbeddingProgress(EmbeddingId(embedding_id), text_id, 0, None, False)

    def progress(self, text_id: TextId, generation: Generation) -> EmbeddingProgress | None:
        """Return the embedding progress of a text, or None if it was not begun."""
        row = self._database.row(
            "SELECT id, content, n_chunks, position, complete FROM embeddings WHERE content = ? AND generation = ?",
            (text_id, generation.id),
        )
        return None if row is None else EmbeddingProgress(row[0], row[1], row[2], row[3], bool(row[4]))

    def append(self, embedding_id: EmbeddingId, vectors: Sequence[ChunkVector]) -> None:
        """Append the next chunks of a text, and store the position after them.

        Raises InputError if the chunks do not follow the stored ones, or have the wrong dimension.
        """
        if not vectors:
            return
        with self._database.transaction():
            text_id, generation_id, n_chunks, dim, slot, epoch = self._target(embedding_id)
            codes = self._checked(vectors, n_chunks, dim)
            first: ChunkId = self._database.value("SELECT value FROM counters WHERE name = 'next_chunk'")
            self._insert_chunks(embedding_id, first, vectors, codes)
            self._insert_words(generation_id, text_id, first, vectors)
            rows = signs(codes)
            BitsFile(self._directory, generation_id, epoch, dim).write(slot, rows)
            self._database.step("bits written")
            self._claim_slots(embedding_id, first, slot, rows)
            self._database.run("UPDATE counters SET value = ? WHERE name = 'next_chunk'", (first + len(vectors),))
            count_unmerged(self._database, len(vectors))
            self._database.run(
                "UPDATE generations SET next_slot = ? WHERE id = ?", (slot + len(vectors), generation_id)
            )
            self._database.run(
                "UPDATE embeddings SET n_chunks = ?, position = ? WHERE id = ?",
                (n_chunks + len(vectors), vectors[-1].position, embedding_id),
            )

    def complete(self, embedding_id: EmbeddingId) -> None:
        """Mark a text as having all its chunks."""
        with self._database.transaction():
            sql = "UPDATE embeddings SET complete = 1, position = NULL WHERE id = ?"
            if not self._database.run(sql, (embedding_id,)):
                raise InputError(f"embedding {embedding_id} is not in the index")

    def restart(self, embedding_id: EmbeddingId) -> None:
        """Delete the chunks of an unfinished text whose resume position is no longer usable."""
        with self._database.transaction():
            drop_chunks(self._database, embedding_id)
            self._database.run(
                "UPDATE embeddings SET n_chunks = 0, position = NULL, complete = 0 WHERE id = ?", (embedding_id,)
            )

    def pending(self, generation: Generation) -> Iterator[TextId]:
        """Yield the ids of texts without complete vectors in a generation, in the order they were added.

        Texts may be completed during the iteration.
        """
        last = 0
        while True:
            row = self._database.row(
                f"SELECT id FROM contents WHERE id > ? AND {_REFERENCED} AND NOT EXISTS (SELECT 1 FROM embeddings WHERE"
                " embeddings.content = contents.id AND generation = ? AND complete) ORDER BY id LIMIT 1",
                (last, generation.id),
            )
            if row is None:
                return
            last = row[0]
            yield last

    def switch(self, generation: Generation) -> None:
        """Make searches use a generation. The previous one is retired and deleted by the next `compact`.

        Raises InputError if a text has no complete vectors in the new generation.
        """
        with self._database.transaction():
            if next(self.pending(generation), None) is not None:
                raise InputError("some texts have no vectors in the new generation yet; finish embedding first")
            self._database.step("switch")
            self._database.run(
                "UPDATE generations SET state = ?, fingerprint = NULL WHERE state = ? AND id <> ?",
                (RETIRED, SERVING, generation.id),
            )
            changed = self._database.run(
                "UPDATE generations SET state = ? WHERE id = ? AND state <> ?", (SERVING, generation.id, RETIRED)
            )
            if not changed:
                raise InputError(f"generation {generation.id} is no longer in the index")

    def null_baseline(self, generation: Generation) -> NullBaseline | None:
        """Return the null baseline of a generation, or None if it was not measured yet."""
        if self._database.row("SELECT 1 FROM sqlite_schema WHERE name = 'yardsticks'") is None:
            return None  # a version 1 index that was not opened for writing since
        stored = self._database.value("SELECT figures FROM yardsticks WHERE generation = ?", (generation.id,))
        if stored is None:
            return None
        figures = json.loads(stored)
        return NullBaseline(**{field: figures[key] for field, key in _BASELINE_KEYS.items()})

    def set_null_baseline(self, generation: Generation, baseline: NullBaseline) -> None:
        """Store the null baseline of a generation."""
        figures = {key: getattr(baseline, field) for field, key in _BASELINE_KEYS.items()}
        with self._database.transaction():
            self._database.run(
                "INSERT INTO yardsticks(generation, figures) VALUES (?, ?)"
                " ON CONFLICT(generation) DO UPDATE SET figures = excluded.figures",
                (generation.id, json.dumps(figures)),
            )

    def _one(self, condition: str, value: Any) -> Generation | None:
        row = self._database.row(_GENERATION + condition, (value,))
        if row is None:
            return None
        generation_id, fingerprint, settings, dim, state = row
        named = with_current_names(json.loads(settings))  # a reader may find those of an earlier release
        return Generation(generation_id, fingerprint, named, dim, state == SERVING)

    def _target(self, embedding_id: EmbeddingId) -> tuple[TextId, int, int, int, int, int]:
        """Return the text, the generation id, the chunks so far, the dimension, the next slot and the epoch."""
        row = self._database.row(
            "SELECT content, generation, n_chunks, dim, next_slot, epoch FROM embeddings JOIN generations"
            " ON generations.id = generation WHERE embeddings.id = ? AND NOT complete AND state <> ?",
            (embedding_id, RETIRED),
        )
        if row is None:
            raise InputError(f"cannot append to embedding {embedding_id}: it is complete, or no longer in the index")
        return row[0], row[1], row[2], row[3], row[4], row[5]

    def _checked(self, vectors: Sequence[ChunkVector], n_chunks: int, dim: int) -> np.ndarray:
        codes = np.stack([vector.codes for vector in vectors])
        if codes.dtype != np.int8 or codes.shape[1:] != (dim,):
            raise InputError(f"expected codes int8 [N, {dim}], got {codes.dtype} {list(codes.shape)}")
        for index, vector in enumerate(vectors, start=n_chunks):
            if vector.index != index:
                raise InputError(f"expected chunk {index} next, got chunk {vector.index}")
        return codes

    def _insert_chunks(
        self, embedding_id: EmbeddingId, first: ChunkId, vectors: Sequence[ChunkVector], codes: np.ndarray
    ) -> None:
        self._database.run_many(
            "INSERT INTO chunks(id, embedding, ordinal, start, stop, line, page, heading, codes)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    *(first + offset, embedding_id, vector.index, vector.start, vector.stop, vector.line, vector.page),
                    json.dumps(vector.heading, ensure_ascii=False) if vector.heading else None,
                    codes[offset].tobytes(),
                )
                for offset, vector in enumerate(vectors)
            ),
        )

    def _insert_words(
        self, generation_id: int, text_id: TextId, first: ChunkId, vectors: Sequence[ChunkVector]
    ) -> None:
        self._database.run_many(
            f"INSERT INTO {words_table(generation_id)}(rowid, heading, text) VALUES (?, ?, ?)",
            (
                (
                    first + offset,
                    searchable(" ".join(vector.heading)),
                    searchable(self._texts.read(text_id, vector.start, vector.stop)),
                )
                for offset, vector in enumerate(vectors)
            ),
        )

    def _claim_slots(self, embedding_id: EmbeddingId, first: ChunkId, slot: int, rows: np.ndarray) -> None:
        """Assign rows of the bits file to chunks, extending the previous run if they directly follow it."""
        last = self._database.row(
            "SELECT first_chunk, n_chunks, checksum FROM runs WHERE first_chunk + n_chunks = ? AND slot + n_chunks = ?"
            " AND embedding = ?",
            (first, slot, embedding_id),
        )
        if last is None:
            self._database.run(
                "INSERT INTO runs(first_chunk, embedding, n_chunks, slot, checksum) VALUES (?, ?, ?, ?, ?)",
                (first, embedding_id, len(rows), slot, checksum(rows)),
            )
        else:
            self._database.run(
                "UPDATE runs SET n_chunks = ?, checksum = ? WHERE first_chunk = ?",
                (last[1] + len(rows), checksum(rows, last[2]), last[0]),
            )


def drop_chunks(database: Database, embedding_id: EmbeddingId) -> None:
    """Delete the chunks of a text in a generation, with their full-text rows, vectors and runs."""
    generation_id = database.value("SELECT generation FROM embeddings WHERE id = ?", (embedding_id,))
    runs = database.rows("SELECT first_chunk, n_chunks FROM runs WHERE embedding = ?", (embedding_id,))
    for first, count in runs:
        between = (first, first + count - 1)
        database.run(f"DELETE FROM {words_table(generation_id)} WHERE rowid BETWEEN ? AND ?", between)
        database.run("DELETE FROM chunks WHERE id BETWEEN ? AND ?", between)
        count_unmerged(database, count)
    database.run("DELETE FROM runs WHERE embedding = ?", (embedding_id,))


def count_unmerged(database: Database, n_chunks: int) -> None:
    """Count chunks that were added or deleted since the full-text indexes were last optimized."""
    database.run("UPDATE counters SET value = value + ? WHERE name = 'unmerged'", (n_chunks,))
