"""Search: rank chunks by vectors, words, exact phrase and name, and combine the rankings (see `fusing`).

- `dense`: the rows of sign bits closest to the query by Hamming distance, reordered by their dot product with the int8
  query, then scored by exact cosine in batches, until a whole batch adds nothing to the best `k`.
- `words`: BM25 of the chunks that contain any word of the query; in a large index, very frequent words are ignored.
- `phrase`: the chunks that contain the whole query, or its parts in double quotes, word for word.
- `name`: the best chunk of each document whose file name or title contains every word of the query.

A filter is applied to all of them before ranking.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.text.lexical import match_expression
from pplx_search.store.bits import signs
from pplx_search.store.database import Database
from pplx_search.store.evidence import gather
from pplx_search.store.fusing import DENSE, NAME, PHRASE, WORDS, Rankings
from pplx_search.store.hits import read_hits
from pplx_search.store.kernel import Kernel, Scanner, cosines, leanings
from pplx_search.store.schema import words_table
from pplx_search.store.snapshot import Allowed, Snapshot, load_snapshot
from pplx_search.store.values import Evidence, Generation, Hit, Passage, Query
from pplx_search.store.vectors import Vectors, searchable
from pplx_search.store.word_weights import COUNTED, count_chunks, most_bm25

_BATCH = 128  # chunks scored exactly between checks of whether to stop
_FEW = 0.2  # share of rows below which gathering them is cheaper than scanning all
_COMPARED = 256  # top chunks of each word ranking that also get an exact cosine
_LEG = 1000  # most hits of a word ranking
_NAMES = 100
_QUOTED = re.compile(r'"([^"]+)"')


class Searcher:
    """Answers queries on the current state of an index."""

    def __init__(self, database: Database, directory: Path, vectors: Vectors, kernel: Kernel, threads: int):
        self._database, self._directory, self._vectors = database, directory, vectors
        self.kernel, self._scanner = kernel, Scanner(kernel, threads)
        self._snapshot: Snapshot | None = None
        self._state: tuple[int, int, int] | None = None

    def search(self, query: Query) -> list[Hit]:
        """Return the best `k` chunks, best first. Raises InputError if the query vector has the wrong dimension."""
        with self._database.reading():
            snapshot = self.snapshot()
            if snapshot is None:
                return []
            allowed = snapshot.allowed(self._database, query.filter)
            found = Rankings()
            if query.codes is not None:
                self._dense(query, snapshot, allowed, found)
            if query.words.strip():
                self._by_words(query, snapshot, allowed, found)
                self._by_name(query, snapshot, allowed, found)
            if query.codes is not None:
                self._compare(query, snapshot, found)
            return read_hits(self._database, list(found.scores().items())[: query.k], query.filter, found)

    def evidence(self, query: Query, hits: Sequence[Hit]) -> Evidence:
        """Return the evidence in the hits of a search, in the current state of the index."""
        with self._database.reading():
            snapshot = self.snapshot()
            if snapshot is None:
                return Evidence(prominence=None, share_of_words=0.0, exact=False)
            there = [hit for hit, content in zip(hits, self._contents(snapshot, hits), strict=True) if content]
            return gather(self._database, self.kernel, snapshot, query, there)

    def spread(self, count: int) -> list[Passage]:
        """Return `count` passages, or all if there are fewer, spread evenly over the index."""
        with self._database.reading():
            snapshot = self.snapshot()
            chunks = [] if snapshot is None else snapshot.spread(count).tolist()
            of_chunk = "FROM chunks JOIN embeddings ON embeddings.id = embedding WHERE chunks.id = ?"
            sql = f"SELECT content, start, stop {of_chunk}"
            return [Passage(*row) for chunk in chunks for row in self._database.rows(sql, (chunk,))]

    def n_chunks(self) -> int:
        """Return the number of searchable chunks."""
        with self._database.reading():
            snapshot = self.snapshot()
            return 0 if snapshot is None else snapshot.n_chunks

    def snapshot(self) -> Snapshot | None:
        """Return the current state of the serving generation, or None; reload it if the index has changed."""
        state = self._database.state
        if state != self._state:
            generation = self._vectors.serving
            before = self._snapshot
            self._snapshot = generation and load_snapshot(self._database, generation, self._directory, before)
            self._state = state
        return self._snapshot

    def _contents(self, snapshot: Snapshot, hits: Sequence[Hit]) -> list[int]:
        """Return the text ids of hits, with 0 for texts deleted since the search."""
        return snapshot.contents_of(np.array([hit.chunk for hit in hits], np.int64)).tolist()

    def _dense(self, query: Query, snapshot: Snapshot, allowed: Allowed, found: Rankings) -> None:
        codes = self._checked(query, snapshot.generation)
        slots = self._nearest(codes, snapshot, allowed, query.depth)
        chunks, scores = self._rescored(codes, slots, query.k, snapshot)
        order = np.lexsort((chunks, -scores))
        found.legs[DENSE] = chunks[order].tolist()
        found.cosines.update(zip(chunks.tolist(), scores.tolist(), strict=True))

    def _nearest(self, codes: np.ndarray, snapshot: Snapshot, allowed: Allowed, depth: int) -> np.ndarray:
        """Return the nearest rows of the bits file, most similar first by the asymmetric score."""
        bits = signs(codes[None])[0]
        if allowed.slots is not None and allowed.n_slots < _FEW * snapshot.n_slots:
            slots, _ = self._scanner.nearest_of(bits, snapshot.bits, depth, np.flatnonzero(allowed.slots))
        else:
            slots, _ = self._scanner.nearest(bits, snapshot.bits, depth, allowed.slots)
        return slots[np.argsort(-leanings(self.kernel, codes, snapshot.bits[slots]), kind="stable")]

    def _rescored(
        self, codes: np.ndarray, slots: np.ndarray, k: int, snapshot: Snapshot
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return chunks with their exact cosines, stopping after a batch that adds none to the best `k`."""
        chunks, scores = np.zeros(0, np.int64), np.zeros(0)
        size = max(_BATCH, k)
        for start in range(0, len(slots), size):
            batch = snapshot.chunks_at(slots[start : start + size])
            fresh = self._cosines(codes, batch, snapshot.generation)
            least = np.partition(scores, -k)[-k] if len(scores) >= k else -np.inf
            chunks, scores = np.concatenate([chunks, batch]), np.concatenate([scores, fresh])
            if fresh.max() <= least:
                break
        return chunks, scores

    def _cosines(self, codes: np.ndarray, chunks: np.ndarray, generation: Generation) -> np.ndarray:
        order = np.argsort(chunks)  # read neighboring rows of the file together
        rows = np.empty((len(chunks), generation.dim), np.int8)
        into = rows.data.cast("B")
        self._database.read_blobs("chunks", "codes", chunks[order].tolist(), into, generation.dim)
        scores = np.empty(len(chunks))
        scores[order] = cosines(self.kernel, codes, rows)
        return scores

    def _by_words(self, query: Query, snapshot: Snapshot, allowed: Allowed, found: Rankings) -> None:
        table = words_table(snapshot.generation.id)
        found.most = most_bm25(self._database, snapshot, query.words)
        expression = self._affordable(table, query.words, snapshot)
        if not expression:
            return
        rows = self._matches(table, expression, snapshot, allowed)
        found.bm25.update(rows)
        found.legs[WORDS] = [chunk for chunk, _ in rows]
        if phrases := _phrases(query.words):
            exact = self._matches(table, " AND ".join(phrases), snapshot, allowed)
            for chunk, score in exact:
                found.bm25.setdefault(chunk, score)
            found.legs[PHRASE] = [chunk for chunk, _ in exact]

    def _affordable(self, table: str, words: str, snapshot: Snapshot) -> str:
        """Return an FTS5 expression that matches any of the words, ignoring very frequent ones.

        Frequent words add almost nothing to BM25, but ranking every chunk that contains them is slow. If all words are
        frequent, the expression requires all of them.
        """
        if snapshot.n_slots <= COUNTED:
            return match_expression(words)
        terms = [expression for word in words.split() if (expression := match_expression(word))]
        rare = [term for term in terms if count_chunks(self._database, snapshot, term) <= COUNTED]
        return " OR ".join(rare) if rare else " AND ".join(f"({term})" for term in terms)

    def _matches(self, table: str, expression: str, snapshot: Snapshot, allowed: Allowed) -> list[tuple[int, float]]:
        """Return the chunks that match the expression and the filter, with BM25 (higher is better), best first."""
        rows = self._database.each(
            f"SELECT rowid, -bm25({table}) AS score FROM {table} WHERE {table} MATCH ? ORDER BY score DESC, rowid",
            (expression,),
        )
        return _first_allowed(rows, lambda chunks: allowed.contents[snapshot.contents_of(chunks)], _LEG)

    def _by_name(self, query: Query, snapshot: Snapshot, allowed: Allowed, found: Rankings) -> None:
        expression = _all_terms(query.words)
        if not expression:
            return
        rows = self._database.rows(
            "SELECT DISTINCT content FROM (SELECT content FROM names JOIN documents ON documents.id = names.rowid"
            " WHERE names MATCH ? ORDER BY rank, documents.id LIMIT ?)",
            (expression, _NAMES),
        )
        named = [content for (content,) in rows if content <= snapshot.n_contents and allowed.contents[content]]
        if not named:
            return
        best = self._best_of_each(snapshot, found)
        chunks = (best.get(content) or self._first_chunk(content, snapshot) for content in named)
        found.legs[NAME] = [chunk for chunk in chunks if chunk is not None]

    def _best_of_each(self, snapshot: Snapshot, found: Rankings) -> dict[int, int]:
        """Return the best chunk so far of each text."""
        ranked = np.array(list(found.scores()), np.int64)
        best: dict[int, int] = {}
        for content, chunk in zip(snapshot.contents_of(ranked).tolist(), ranked.tolist(), strict=True):
            best.setdefault(content, chunk)
        return best

    def _first_chunk(self, content: int, snapshot: Snapshot) -> int | None:
        runs = np.flatnonzero(snapshot.contents == content)
        return int(snapshot.first_chunks[runs[0]]) if len(runs) else None

    def _compare(self, query: Query, snapshot: Snapshot, found: Rankings) -> None:
        """Compute the exact cosine of the best chunks of each ranking that the dense ranking does not include."""
        best = dict.fromkeys(chunk for leg in found.legs.values() for chunk in leg[:_COMPARED])
        missing = [chunk for chunk in best if chunk not in found.cosines]
        if missing:
            codes = self._checked(query, snapshot.generation)
            scores = self._cosines(codes, np.array(missing, np.int64), snapshot.generation)
            found.cosines.update(zip(missing, scores.tolist(), strict=True))

    def _checked(self, query: Query, generation: Generation) -> np.ndarray:
        codes = query.codes
        if codes is None or codes.shape != (generation.dim,):
            width = None if codes is None else len(codes)
            raise InputError(
                f"the query vector has {width} dimensions, the index {generation.dim}; encode it with the same model"
            )
        return np.ascontiguousarray(codes)


def _first_allowed(rows: Any, let_through: Callable[[np.ndarray], np.ndarray], limit: int) -> list[tuple[int, float]]:
    """Return the first `limit` rows (chunk, score) whose chunk passes the filter, checking them in blocks."""
    found: list[tuple[int, float]] = []
    while len(found) < limit:
        block = [row for _, row in zip(range(limit), rows, strict=False)]
        if not block:
            break
        flags = let_through(np.array([chunk for chunk, _ in block], np.int64))
        found += [row for row, flag in zip(block, flags.tolist(), strict=True) if flag]
    return found[:limit]


def _phrases(words: str) -> list[str]:
    """Return FTS5 phrases for the parts in double quotes, or for the whole query if it has several words."""
    texts = _QUOTED.findall(words) or ([words] if len(words.split()) > 1 else [])
    return [
        '"{}"'.format(searchable(text).replace('"', " ").replace("\0", " ")) for text in texts if match_expression(text)
    ]


def _all_terms(words: str) -> str:
    """Return an FTS5 expression for names that contain every word of a query."""
    terms = [expression for word in words.split() if (expression := match_expression(word))]
    return " AND ".join(f"({term})" for term in terms)
