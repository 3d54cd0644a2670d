"""The words of a corpus in one file of SQLite's FTS5, with the tokenizer and the BM25 of pplx-search.

The full-text indexes of engines split words and weigh them in other ways, so their hybrid results differ from those of
the local store. This file makes them equal. It is written once and takes about a third of the size of the text.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Self

from pplx_edge.errors import InputError
from pplx_edge.files import replacing_file
from pplx_edge.text.lexical import TOKENIZER
from pplx_scale.corpus import Corpus
from pplx_scale.loading import NUMBER, numbered_tables
from pplx_search.ids import ChunkId
from pplx_search.query.full_text import searchable

_TABLE = f"CREATE VIRTUAL TABLE words USING fts5(text, heading, content='', tokenize='{TOKENIZER}')"


class Words:
    """An open file of words. Row ids are the numbers of the vectors."""

    def __init__(self, path: str | Path):
        if not Path(path).is_file():
            raise InputError(f"{path}: no file of words; make one with Words.build")
        self._database = sqlite3.connect(f"file:{Path(path).absolute()}?mode=ro", uri=True, check_same_thread=False)
        self._counts: dict[tuple[str, int], int] = {}

    @classmethod
    def build(cls, corpus: Corpus, path: str | Path) -> Self:
        """Write the words of a corpus that was embedded with its texts, replacing the file, and open it."""
        if not corpus.settings["with_text"]:
            raise InputError(f"{corpus.location}: has no texts; embed it with --with-text")
        with replacing_file(Path(path)) as partial, closing(sqlite3.connect(partial)) as database, database:
            database.execute(_TABLE)
            for table in numbered_tables(corpus):
                rows = zip(table[NUMBER].to_pylist(), table["text"].to_pylist(), strict=True)
                database.executemany(
                    "INSERT INTO words(rowid, text, heading) VALUES (?, ?, '')",
                    ((number, searchable(text)) for number, text in rows),
                )
        return cls(path)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def matches(self, expression: str) -> Iterator[tuple[ChunkId, float]]:
        """See `pplx_search.query.snapshot.Snapshot`."""
        sql = "SELECT rowid, -bm25(words) AS score FROM words WHERE words MATCH ? ORDER BY score DESC, rowid"
        yield from self._database.execute(sql, (expression,))

    def n_chunks_with(self, term: str, limit: int) -> int:
        """See `pplx_search.query.snapshot.Snapshot`."""
        if (term, limit) not in self._counts:
            sql = "SELECT count(*) FROM (SELECT 1 FROM words WHERE words MATCH ? LIMIT ?)"
            self._counts[term, limit] = self._database.execute(sql, (term, limit)).fetchone()[0]
        return self._counts[term, limit]
