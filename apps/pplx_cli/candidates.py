"""The passages of one search, ranked by vectors and by words, in memory that does not grow with them."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType

import numpy as np

from pplx_edge.text.lexical import TOKENIZER, indexable, match_expression
from pplx_edge.vectors.similarity import reciprocal_rank_fusion

_DEPTH = 1000  # of each ranking that is fused; what is further down in one adds next to nothing

_SCHEMA = f"""
CREATE TABLE passages(id INTEGER PRIMARY KEY, file INTEGER, first_line INTEGER, start INTEGER, stop INTEGER, text TEXT,
                      score REAL);
CREATE VIRTUAL TABLE words USING fts5(path, text, content='', tokenize='{TOKENIZER}');
"""


class Ranking(StrEnum):
    """What decides on the order of hits: both by reciprocal ranks, the vectors alone, or BM25 alone."""

    HYBRID = "hybrid"
    DENSE = "dense"
    WORDS = "words"


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk of a file, `[start, stop)` in its characters."""

    path: str
    first_line: int
    start: int
    stop: int
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage, its cosine to the question, and its line that is most like it (an offset in the passage)."""

    passage: Passage
    score: float
    best_line: int = 0


class Candidates:
    """Passages with their cosines to a question, in a private database that SQLite spills to a temporary file."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("")
        self._database.executescript(_SCHEMA)
        self._paths: list[str] = []  # apart, because the name of a file need not be valid Unicode

    def __enter__(self) -> "Candidates":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, passages: Sequence[Passage], scores: np.ndarray) -> None:
        """Takes passages with their cosines `[N]`."""
        for passage, score in zip(passages, scores.tolist(), strict=True):
            if not self._paths or self._paths[-1] != passage.path:
                self._paths.append(passage.path)
            row = (len(self._paths) - 1, passage.first_line, passage.start, passage.stop, passage.text, score)
            number = self._database.execute(
                "INSERT INTO passages(file, first_line, start, stop, text, score) VALUES (?, ?, ?, ?, ?, ?)", row
            ).lastrowid
            path = passage.path.encode("utf-8", "replace").decode()
            self._database.execute(
                "INSERT INTO words(rowid, path, text) VALUES (?, ?, ?)",
                (number, indexable(path), indexable(passage.text)),
            )

    def best(self, question: str, k: int, min_score: float | None, ranking: Ranking) -> list[Hit]:
        """The best `k` for a question, best first, none whose cosine is below `min_score`."""
        least = -2.0 if min_score is None else min_score  # a cosine is never below -1
        depth = max(_DEPTH, k)
        legs: list[list[int]] = []
        if ranking != Ranking.WORDS:
            legs.append(self._by_vectors(least, depth))
        if ranking != Ranking.DENSE:
            legs.append(self._by_words(question, least, depth))
        return [self._hit(number) for number in reciprocal_rank_fusion(legs)[:k]]

    def _by_vectors(self, least: float, depth: int) -> list[int]:
        rows = self._database.execute(
            "SELECT id FROM passages WHERE score >= ? ORDER BY score DESC, id LIMIT ?", (least, depth)
        )
        return [number for (number,) in rows]

    def _by_words(self, question: str, least: float, depth: int) -> list[int]:
        expression = match_expression(question)
        if not expression:
            return []
        rows = self._database.execute(
            "SELECT passages.id FROM words JOIN passages ON passages.id = words.rowid"
            " WHERE words MATCH ? AND score >= ? ORDER BY bm25(words), passages.id LIMIT ?",
            (expression, least, depth),
        )
        return [number for (number,) in rows]

    def _hit(self, number: int) -> Hit:
        file, *place, score = self._database.execute(
            "SELECT file, first_line, start, stop, text, score FROM passages WHERE id = ?", (number,)
        ).fetchone()
        return Hit(Passage(self._paths[file], *place), score)
