"""Generations of vectors, and the vectors of texts as they come."""

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
        """The generation that searches use, None in an index without vectors."""
        return self._one("state = ?", SERVING)

    @property
    def building(self) -> Generation | None:
        """The generation that is to serve once it is complete, None when there is none."""
        return self._one("state = ?", BUILDING)

    def use(self, fingerprint: str, settings: Mapping[str, Any], dim: int) -> Generation:
        """The generation of a fingerprint, which names the model's weights and all settings that vectors depend on.

        The first of an index serves at once. Another is built beside it, and serves after `switch`; one that was being
        built and is neither of the two is given up.
        """
        with self._database.transaction():
            found = self._one("fingerprint = ?", fingerprint)
            if found is not None:
                if found.dim != dim:
                    raise InputError(f"the index holds vectors of {found.dim} dimensions by this name, not {dim}")
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
        """How far the vectors of a text are; a text that has none yet is begun."""
        with self._database.transaction():
            found = self.progress(content, generation)
            if found is not None:
                return found
            embedding = self._database.insert(
                "INSERT INTO embeddings(content, generation) VALUES (?, ?)", (content, generation.id)
            )
        return Progress(embedding, content, 0, None, False)

    def progress(self, content: int, generation: Generation) -> Progress | None:
        """As `begin`, None for a text that was not begun."""
        row = self._database.row(
            "SELECT id, content, n_chunks, position, complete FROM embeddings WHERE content = ? AND generation = ?",
            (content, generation.id),
        )
        return None if row is None else Progress(row[0], row[1], row[2], row[3], bool(row[4]))

    def append(self, embedding: int, vectors: Sequence[ChunkVector]) -> None:
        """Adds the next chunks of a text, and remembers the position behind them.

        Raises InputError for chunks that do not follow those that are there, or of another width.
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
        """Says that a text has all its chunks."""
        with self._database.transaction():
            if not self._database.run("UPDATE embeddings SET complete = 1, position = NULL WHERE id = ?", (embedding,)):
                raise InputError(f"embedding {embedding} is not in the index")

    def restart(self, embedding: int) -> None:
        """Drops the chunks of a text that was not finished, where its position is of no use any more."""
        with self._database.transaction():
            drop_chunks(self._database, embedding)
            self._database.run(
                "UPDATE embeddings SET n_chunks = 0, position = NULL, complete = 0 WHERE id = ?", (embedding,)
            )

    def pending(self, generation: Generation) -> Iterator[int]:
        """The texts of documents that do not have all their vectors in a generation, in the order in which they came.

        Texts may be completed while this runs.
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
        """Lets a generation serve instead of the one that does, which is retired and goes with the next `compact`.

        Raises InputError while a text lacks vectors in it.
        """
        with self._database.transaction():
            if next(self.pending(generation), None) is not None:
                raise InputError("not every text has its vectors in the new generation yet; finish embedding first")
            self._database.step("switch")
            self._database.run(
                "UPDATE generations SET state = ?, fingerprint = NULL WHERE state = ? AND id <> ?",
                (RETIRED, SERVING, generation.id),
            )
            changed = self._database.run(
                "UPDATE generations SET state = ? WHERE id = ? AND state <> ?", (SERVING, generation.id, RETIRED)
            )
            if not changed:
                raise InputError(f"generation {generation.id} is not in the index any more")

    def yardstick(self, generation: Generation) -> Yardstick | None:
        """The evidence for nothing in a generation, None where it was not measured yet."""
        if self._database.row("SELECT 1 FROM sqlite_schema WHERE name = 'yardsticks'") is None:
            return None  # an index of the first version that was not opened for writing since
        figures = self._database.value("SELECT figures FROM yardsticks WHERE generation = ?", (generation.id,))
        return None if figures is None else Yardstick(**json.loads(figures))

    def set_yardstick(self, generation: Generation, yardstick: Yardstick) -> None:
        """Keeps what was measured."""
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
            raise InputError(
                f"embedding {embedding} does not take chunks: it is complete, or not in the index any more"
            )
        return row[0], row[1], row[2], row[3], row[4], row[5]

    def _checked(self, vectors: Sequence[ChunkVector], n_chunks: int, dim: int) -> np.ndarray:
        codes = np.stack([vector.codes for vector in vectors])
        if codes.dtype != np.int8 or codes.shape[1:] != (dim,):
            raise InputError(f"codes {codes.dtype} {list(codes.shape)}: this generation takes int8 [{dim}]")
        for index, vector in enumerate(vectors, start=n_chunks):
            if vector.index != index:
                raise InputError(f"chunk {vector.index} was handed over where chunk {index} is the next")
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
        """Makes rows of the bits file those of chunks, in one run with the chunks before where they follow them."""
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
    """Deletes the chunks of a text in a generation: their words, vectors and claims on rows of the bits file."""
    generation = database.value("SELECT generation FROM embeddings WHERE id = ?", (embedding,))
    runs = database.rows("SELECT first_chunk, n_chunks FROM runs WHERE embedding = ?", (embedding,))
    for first, count in runs:
        between = (first, first + count - 1)
        database.run(f"DELETE FROM {words_table(generation)} WHERE rowid BETWEEN ? AND ?", between)
        database.run("DELETE FROM chunks WHERE id BETWEEN ? AND ?", between)
        count_unmerged(database, count)
    database.run("DELETE FROM runs WHERE embedding = ?", (embedding,))


def count_unmerged(database: Database, n_chunks: int) -> None:
    """Notes that so many chunks came or went."""
    database.run("UPDATE counters SET value = value + ? WHERE name = 'unmerged'", (n_chunks,))


def searchable(text: str) -> str:
    """A text as the full-text index takes it: letters of unspaced scripts apart, no halves of characters."""
    return indexable(text).encode("utf-8", "replace").decode()
