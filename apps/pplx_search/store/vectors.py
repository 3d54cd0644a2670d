"""Generations of vectors, and appending the vectors of texts to them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge import ChunkVector
from pplx_edge.errors import InputError
from pplx_edge.text.lexical import indexable
from pplx_search.store.bits import BitsFile, checksum, signs
from pplx_search.store.database import Database
from pplx_search.store.schema import create_words, words_table
from pplx_search.store.texts import Texts
from pplx_search.store.values import Generation, Progress, Yardstick

SERVING, BUILDING, RETIRED = "serving", "building", "retired"
_GENERATION = "SELECT id, fingerprint, settings, dim, state FROM generations WHERE "
_LIVE = "EXISTS (SELECT 1 FROM documents WHERE documents.content = contents.id)"


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
            number = self._database.insert(
                "INSERT INTO generations(fingerprint, settings, dim, state) VALUES (?, ?, ?, ?)",
                (fingerprint, json.dumps(dict(settings), sort_keys=True), dim, state),
            )
            create_words(self._database.connection, number)
            BitsFile(self._directory, number, 1, dim).create()
        return Generation(number, fingerprint, settings, dim, state == SERVING)

    def begin(self, content: int, generation: Generation) -> Progress:
        """Return the embedding progress of a text, starting a new embedding if it has none."""
        with self._database.transaction():
            found = self.progress(content, generation)
            if found is not None:
                return found
            embedding = self._database.insert(
                "INSERT INTO embeddings(content, generation) VALUES (?, ?)", (content, generation.id)
            )
        return Progress(embedding, content, 0, None, False)

    def progress(self, content: int, generation: Generation) -> Progress | None:
        """Return the embedding progress of a text, or None if it was not begun."""
        row = self._database.row(
            "SELECT id, content, n_chunks, position, complete FROM embeddings WHERE content = ? AND generation = ?",
            (content, generation.id),
        )
        return None if row is None else Progress(row[0], row[1], row[2], row[3], bool(row[4]))

    def append(self, embedding: int, vectors: Sequence[ChunkVector]) -> None:
        """Append the next chunks of a text, and store the position after them.

        Raises InputError if the chunks do not follow the stored ones, or have the wrong dimension.
        """
        if not vectors:
            return
        with self._database.transaction():
            content, generation, n_chunks, dim, slot, epoch = self._place(embedding)
            codes = self._checked(vectors, n_chunks, dim)
            first = self._database.value("SELECT value FROM counters WHERE name = 'next_chunk'")
            self._insert_chunks(embedding, first, vectors, codes)
            self._insert_words(generation, content, first, vectors)
            rows = signs(codes)
            BitsFile(self._directory, generation, epoch, dim).write(slot, rows)
            self._database.step("bits written")
            self._claim(embedding, first, slot, rows)
            self._database.run("UPDATE counters SET value = ? WHERE name = 'next_chunk'", (first + len(vectors),))
            count_unmerged(self._database, len(vectors))
            self._database.run("UPDATE generations SET next_slot = ? WHERE id = ?", (slot + len(vectors), generation))
            self._database.run(
                "UPDATE embeddings SET n_chunks = ?, position = ? WHERE id = ?",
                (n_chunks + len(vectors), vectors[-1].position, embedding),
            )

    def complete(self, embedding: int) -> None:
        """Mark a text as having all its chunks."""
        with self._database.transaction():
            if not self._database.run("UPDATE embeddings SET complete = 1, position = NULL WHERE id = ?", (embedding,)):
                raise InputError(f"embedding {embedding} is not in the index")

    def restart(self, embedding: int) -> None:
        """Delete the chunks of an unfinished text whose resume position is no longer usable."""
        with self._database.transaction():
            drop_chunks(self._database, embedding)
            self._database.run(
                "UPDATE embeddings SET n_chunks = 0, position = NULL, complete = 0 WHERE id = ?", (embedding,)
            )

    def pending(self, generation: Generation) -> Iterator[int]:
        """Yield the ids of texts without complete vectors in a generation, in the order they were added.

        Texts may be completed during the iteration.
        """
        last = 0
        while True:
            row = self._database.row(
                f"SELECT id FROM contents WHERE id > ? AND {_LIVE} AND NOT EXISTS (SELECT 1 FROM embeddings WHERE"
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

    def yardstick(self, generation: Generation) -> Yardstick | None:
        """Return the null baseline of a generation, or None if it was not measured yet."""
        if self._database.row("SELECT 1 FROM sqlite_schema WHERE name = 'yardsticks'") is None:
            return None  # a version 1 index that was not opened for writing since
        figures = self._database.value("SELECT figures FROM yardsticks WHERE generation = ?", (generation.id,))
        return None if figures is None else Yardstick(**json.loads(figures))

    def set_yardstick(self, generation: Generation, yardstick: Yardstick) -> None:
        """Store the null baseline of a generation."""
        with self._database.transaction():
            self._database.run(
                "INSERT INTO yardsticks(generation, figures) VALUES (?, ?)"
                " ON CONFLICT(generation) DO UPDATE SET figures = excluded.figures",
                (generation.id, json.dumps(asdict(yardstick))),
            )

    def _one(self, condition: str, value: Any) -> Generation | None:
        row = self._database.row(_GENERATION + condition, (value,))
        if row is None:
            return None
        number, fingerprint, settings, dim, state = row
        return Generation(number, fingerprint, json.loads(settings), dim, state == SERVING)

    def _place(self, embedding: int) -> tuple[int, int, int, int, int, int]:
        row = self._database.row(
            "SELECT content, generation, n_chunks, dim, next_slot, epoch FROM embeddings JOIN generations"
            " ON generations.id = generation WHERE embeddings.id = ? AND NOT complete AND state <> ?",
            (embedding, RETIRED),
        )
        if row is None:
            raise InputError(f"cannot append to embedding {embedding}: it is complete, or no longer in the index")
        return row[0], row[1], row[2], row[3], row[4], row[5]

    def _checked(self, vectors: Sequence[ChunkVector], n_chunks: int, dim: int) -> np.ndarray:
        codes = np.stack([vector.codes for vector in vectors])
        if codes.dtype != np.int8 or codes.shape[1:] != (dim,):
            raise InputError(f"expected codes int8 [N, {dim}], got {codes.dtype} {list(codes.shape)}")
        for index, vector in enumerate(vectors, start=n_chunks):
            if vector.index != index:
                raise InputError(f"expected chunk {index} next, got chunk {vector.index}")
        return codes

    def _insert_chunks(self, embedding: int, first: int, vectors: Sequence[ChunkVector], codes: np.ndarray) -> None:
        self._database.run_many(
            "INSERT INTO chunks(id, embedding, ordinal, start, stop, line, page, heading, codes)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    *(first + offset, embedding, vector.index, vector.start, vector.stop, vector.line, vector.page),
                    json.dumps(vector.heading, ensure_ascii=False) if vector.heading else None,
                    codes[offset].tobytes(),
                )
                for offset, vector in enumerate(vectors)
            ),
        )

    def _insert_words(self, generation: int, content: int, first: int, vectors: Sequence[ChunkVector]) -> None:
        self._database.run_many(
            f"INSERT INTO {words_table(generation)}(rowid, heading, text) VALUES (?, ?, ?)",
            (
                (
                    first + offset,
                    searchable(" ".join(vector.heading)),
                    searchable(self._texts.read(content, vector.start, vector.stop)),
                )
                for offset, vector in enumerate(vectors)
            ),
        )

    def _claim(self, embedding: int, first: int, slot: int, rows: np.ndarray) -> None:
        """Assign rows of the bits file to chunks, extending the previous run if they directly follow it."""
        last = self._database.row(
            "SELECT first_chunk, n_chunks, checksum FROM runs WHERE first_chunk + n_chunks = ? AND slot + n_chunks = ?"
            " AND embedding = ?",
            (first, slot, embedding),
        )
        if last is None:
            self._database.run(
                "INSERT INTO runs(first_chunk, embedding, n_chunks, slot, checksum) VALUES (?, ?, ?, ?, ?)",
                (first, embedding, len(rows), slot, checksum(rows)),
            )
        else:
            self._database.run(
                "UPDATE runs SET n_chunks = ?, checksum = ? WHERE first_chunk = ?",
                (last[1] + len(rows), checksum(rows, last[2]), last[0]),
            )


def drop_chunks(database: Database, embedding: int) -> None:
    """Delete the chunks of a text in a generation, with their full-text rows, vectors and runs."""
    generation = database.value("SELECT generation FROM embeddings WHERE id = ?", (embedding,))
    runs = database.rows("SELECT first_chunk, n_chunks FROM runs WHERE embedding = ?", (embedding,))
    for first, count in runs:
        between = (first, first + count - 1)
        database.run(f"DELETE FROM {words_table(generation)} WHERE rowid BETWEEN ? AND ?", between)
        database.run("DELETE FROM chunks WHERE id BETWEEN ? AND ?", between)
        count_unmerged(database, count)
    database.run("DELETE FROM runs WHERE embedding = ?", (embedding,))


def count_unmerged(database: Database, n_chunks: int) -> None:
    """Count chunks that were added or deleted since the full-text indexes were last optimized."""
    database.run("UPDATE counters SET value = value + ? WHERE name = 'unmerged'", (n_chunks,))


def searchable(text: str) -> str:
    """Return a text for the full-text index: unspaced scripts split into letters, lone surrogates replaced."""
    return indexable(text).encode("utf-8", "replace").decode()
