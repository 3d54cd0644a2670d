"""Made-up chunks for the scale of an index: vectors in clusters, and words that people's texts might have.

Vectors are not independent, as those of texts are not. A chunk's mean is the sum of its topic's, its document's and its
own part, in a space of 256 directions whose variance falls as `1 / rank^0.7`, turned into the vector's space by a
random matrix, so that every component has something of all of them; then `round(127 * tanh(mean))`. Topics have sizes
by Zipf's law. A query is like one more chunk of a document that shares from nothing to nine tenths with one that is
there: some questions have their answer in the index, others only something on the same topic.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pplx_edge.vectors.codes import int8_codes

CHUNKS_PER_DOCUMENT = 20
WORDS_PER_CHUNK = 24
_LATENT = 256
_SPREAD = 0.7  # of variance over the directions
_SHARES = (0.45, 0.35, 0.20)  # of variance: topic, document, chunk
_SCALE = 0.35  # standard deviation of a mean's component
_VOCABULARY = 20_000
_DOCUMENTS_AT_ONCE = 500


@dataclass(frozen=True)
class Chunks:
    """`n` made-up chunks of `dim` dimensions, the same for the same seed."""

    n: int
    dim: int
    seed: int = 0

    @property
    def n_documents(self) -> int:
        """How many documents they are of."""
        return -(-self.n // CHUNKS_PER_DOCUMENT)

    def vectors(self) -> Iterator[np.ndarray]:
        """int8 `[some, dim]`, whole documents at a time."""
        for first in range(0, self.n_documents, _DOCUMENTS_AT_ONCE):
            numbers = np.arange(first, min(first + _DOCUMENTS_AT_ONCE, self.n_documents))
            latent = np.repeat(np.add(*self._parts(numbers)), CHUNKS_PER_DOCUMENT, axis=0)
            latent += self._noise(("chunks", first), len(latent), _SHARES[2])
            yield int8_codes(latent @ self._directions)[: self.n - first * CHUNKS_PER_DOCUMENT]

    def queries(self, count: int) -> np.ndarray:
        """int8 `[count, dim]`."""
        rng = np.random.default_rng(self._seed("queries"))
        shares = rng.uniform(0, 0.9, (count, 1)).astype(np.float32)
        topics, own = self._parts(rng.integers(0, self.n_documents, count))
        latent = topics + shares * own + np.sqrt(1 - shares**2) * self._noise(("others",), count, _SHARES[1])
        return int8_codes((latent + self._noise(("query",), count, _SHARES[2])) @ self._directions)

    def text(self, document: int) -> tuple[str, list[int]]:
        """The text of a document and where each of its chunks ends."""
        rng = np.random.default_rng(self._seed("text", document))
        ranks = np.minimum(rng.zipf(1.3, (CHUNKS_PER_DOCUMENT, WORDS_PER_CHUNK)), _VOCABULARY)
        parts = [" ".join(_word(rank) for rank in row) + "\n" for row in ranks.tolist()]
        return "".join(parts), np.cumsum([len(part) for part in parts]).tolist()

    def questions(self, count: int) -> list[str]:
        """Some words each, of documents that are there: three rare ones, and three that are everywhere."""
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
        """What documents have of their topics, and of their own."""
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


def _word(rank: int) -> str:
    """A made-up word, longer for rarer ones."""
    letters, word = "etaoinshrdlucmfw", ""
    while rank:
        rank, letter = divmod(rank, len(letters))
        word += letters[letter]
    return word + "a" * (len(word) < 2)
