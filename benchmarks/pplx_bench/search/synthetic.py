"""Synthetic chunks for measuring an index at scale: vectors in clusters, and words like those of natural text.

Vectors of texts are not independent. A chunk's mean is the sum of parts for its topic, its document and itself, in a
space of 256 directions whose variance decreases as `1 / rank^0.7`. A random matrix maps it to the vector's space, so
that every component depends on all directions; the code is `round(127 * tanh(mean))`. Topic sizes follow Zipf's law. A
query is like another chunk of a document that shares between nothing and nine tenths with an existing one: some queries
have an answer in the index, others only something on the same topic.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pplx_edge.vectors.codes import int8_codes
from pplx_search.query.kernels import cosines, open_kernel

CHUNKS_PER_DOCUMENT = 20
WORDS_PER_CHUNK = 24
_LATENT = 256
_SPREAD = 0.7  # of variance over the directions
_SHARES = (0.45, 0.35, 0.20)  # of variance: topic, document, chunk
_SCALE = 0.35  # standard deviation of a mean's component
_VOCABULARY = 20_000
_DOCUMENTS_AT_ONCE = 500
K = 10  # nearest chunks of a query
_WARM_UP = 5
Figures = dict[str, Any]
Ask = Callable[[int], Sequence[int]]


@dataclass(frozen=True)
class Chunks:
    """`n` synthetic chunks of `dim` dimensions, the same for the same seed."""

    n: int
    dim: int
    seed: int = 0

    @property
    def n_documents(self) -> int:
        """The number of documents that the chunks belong to."""
        return -(-self.n // CHUNKS_PER_DOCUMENT)

    def vectors(self) -> Iterator[np.ndarray]:
        """Yield the vectors of whole documents at a time, int8 `[N, dim]`."""
        for first in range(0, self.n_documents, _DOCUMENTS_AT_ONCE):
            numbers = np.arange(first, min(first + _DOCUMENTS_AT_ONCE, self.n_documents))
            latent = np.repeat(np.add(*self._parts(numbers)), CHUNKS_PER_DOCUMENT, axis=0)
            latent += self._noise(("chunks", first), len(latent), _SHARES[2])
            yield int8_codes(latent @ self._directions)[: self.n - first * CHUNKS_PER_DOCUMENT]

    def queries(self, count: int) -> np.ndarray:
        """Return the vectors of queries, int8 `[count, dim]`."""
        rng = np.random.default_rng(self._seed("queries"))
        shares = rng.uniform(0, 0.9, (count, 1)).astype(np.float32)
        topics, own = self._parts(rng.integers(0, self.n_documents, count))
        latent = topics + shares * own + np.sqrt(1 - shares**2) * self._noise(("others",), count, _SHARES[1])
        return int8_codes((latent + self._noise(("query",), count, _SHARES[2])) @ self._directions)

    def text(self, document: int) -> tuple[str, list[int]]:
        """Return the text of a document and the end of each of its chunks."""
        rng = np.random.default_rng(self._seed("text", document))
        ranks = np.minimum(rng.zipf(1.3, (CHUNKS_PER_DOCUMENT, WORDS_PER_CHUNK)), _VOCABULARY)
        parts = [" ".join(_word(rank) for rank in row) + "\n" for row in ranks.tolist()]
        return "".join(parts), np.cumsum([len(part) for part in parts]).tolist()

    def questions(self, count: int) -> list[str]:
        """Return queries of words from random documents: three rare ones, and three common ones."""
        rng = np.random.default_rng(self._seed("questions"))
        found = []
        for document in rng.integers(0, self.n_documents, count).tolist():
            words = sorted(set(self.text(document)[0].split()), key=len)
            found.append(" ".join([*words[-3:], *words[:3]]))
        return found

    @cached_property
    def _directions(self) -> np.ndarray:
        rng = np.random.default_rng(self._seed("directions"))
        variances = np.arange(1, _LATENT + 1) ** -_SPREAD
        variances *= _SCALE**2 / variances.sum()
        directions = rng.standard_normal((_LATENT, self.dim)) * np.sqrt(variances)[:, None]
        return directions.astype(np.float32)

    @cached_property
    def _topics(self) -> np.ndarray:
        return self._noise(("topics",), max(1, self.n_documents // 50), _SHARES[0])

    def _parts(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the parts of documents that come from their topics, and their own parts."""
        rngs = np.random.default_rng(self._seed("topic of"))
        weights = 1 / np.arange(1, len(self._topics) + 1)
        topics = rngs.choice(len(self._topics), self.n_documents, p=weights / weights.sum())
        own = np.stack([self._noise(("document", number), 1, _SHARES[1])[0] for number in numbers.tolist()])
        return self._topics[topics[numbers]], own

    def _noise(self, key: tuple[object, ...], count: int, share: float) -> np.ndarray:
        rng = np.random.default_rng(self._seed(*key))
        return rng.standard_normal((count, _LATENT), np.float32) * np.float32(np.sqrt(share))

    def _seed(self, *key: object) -> list[int]:
        return [self.seed, *"/".join(map(str, key)).encode()]


@dataclass(frozen=True, slots=True)
class Questions:
    """Query vectors int8 `[Q, D]`, their words, and the `K` nearest chunks of each by exact cosine."""

    codes: np.ndarray
    words: list[str]
    nearest: list[np.ndarray]


def questions(chunks: Chunks, vectors: np.ndarray, count: int) -> Questions:
    """Return queries with their exact answers."""
    codes = chunks.queries(count)
    return Questions(codes, chunks.questions(count), [nearest_rows(row, vectors) for row in codes])


def nearest_rows(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the indices of the `K` rows nearest to a query by exact cosine."""
    return np.argsort(-cosines(open_kernel(), query, rows), kind="stable")[:K]


def timed(ask: Ask, asked: Questions, nearest: Sequence[np.ndarray] | None = None) -> Figures:
    """Return the seconds of each query, asked once after a few to warm up, and the recall of the nearest chunks."""
    for index in range(min(_WARM_UP, len(asked.codes))):
        ask(index)
    seconds, recalls = [], []
    for index in range(len(asked.codes)):
        started = time.perf_counter()
        found = ask(index)
        seconds.append(time.perf_counter() - started)
        if nearest is not None:
            recalls.append(len(set(found) & set(nearest[index].tolist())) / max(1, len(nearest[index])))
    return {"seconds": seconds, "recall": statistics.mean(recalls) if recalls else None}


def _word(rank: int) -> str:
    """Return a synthetic word, longer for rarer ones."""
    letters, word = "etaoinshrdlucmfw", ""
    while rank:
        rank, letter = divmod(rank, len(letters))
        word += letters[letter]
    return word + "a" * (len(word) < 2)
