"""Samplers of batches. A batch is a function of seed and step, so a resumed run needs no state of a data loader."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pplx_quant.corpus import PackedCorpus
from pplx_quant.errors import ConfigError


@dataclass(frozen=True)
class PairSampler:
    """Samples rows of pairs; `rows` are the candidates of each group and `shares` the probabilities of the groups."""

    rows: tuple[np.ndarray, ...]
    shares: np.ndarray

    @classmethod
    def build(
        cls, packed: PackedCorpus, exponent: float, boosts: Sequence[str], only: np.ndarray | None = None
    ) -> "PairSampler":
        """Return a sampler of all rows that are not held out (and True in `only`, bool `[N]`).

        The share of a group is size ** `exponent` times its boosts. A boost is `group=factor`, or `prefix*=factor` for
        all groups with that prefix; factor 0 excludes a group. Raises ConfigError for a boost that is malformed or
        matches no group.
        """
        trained = ~packed.held_out if only is None else ~packed.held_out & only
        rows = tuple(np.flatnonzero((packed.group == number) & trained) for number in range(len(packed.groups)))
        shares = np.array([len(group) ** exponent if len(group) else 0.0 for group in rows])
        for boost in boosts:
            pattern, factor = parse_factor(boost)
            chosen = [matches(name, pattern) for name in packed.groups]
            if not any(chosen):
                raise ConfigError(f"boost {boost!r} matches no group; groups are {', '.join(packed.groups)}")
            shares[chosen] *= factor
        if not shares.sum():
            raise ConfigError("there is no pair to train on: every group is empty, held out or boosted by 0")
        return cls(rows, shares / shares.sum())

    def batch(self, step: int, size: int, block: int, seed: int) -> np.ndarray:
        """Return the rows of a step, int64 `[size]`.

        Each run of `block` rows is from one group, because passages of the same kind are harder negatives.
        """
        generator = np.random.default_rng((seed, step))
        drawn = []
        for start in range(0, size, block):
            group = self.rows[generator.choice(len(self.rows), p=self.shares)]
            wanted = min(block, size - start)
            drawn.append(generator.choice(group, wanted, replace=len(group) < wanted))
        return np.concatenate(drawn)


@dataclass(frozen=True)
class SequenceSampler:
    """Samples sequences of `length` tokens of joined texts, for pretraining; a share is cut to a random length."""

    packed: PackedCorpus
    separator: int
    length: int
    short_share: float

    def batch(self, step: int, size: int, seed: int) -> list[np.ndarray]:
        """Return the ids of the `size` sequences of a step.

        Texts are sampled in proportion to their length, and held-out positives are excluded.
        """
        generator = np.random.default_rng((seed, step))
        return [self._sequence(generator) for _ in range(size)]

    def _sequence(self, generator: np.random.Generator) -> np.ndarray:
        stop = self.length
        if generator.random() < self.short_share:
            stop = int(generator.integers(2, self.length + 1))
        return token_stream(self._texts(generator), self.separator, stop)

    def _texts(self, generator: np.random.Generator) -> Iterator[np.ndarray]:
        while True:
            place = int(generator.integers(len(self.packed.ids)))
            number = int(np.searchsorted(self.packed.starts, place, side="right")) - 1
            if number not in self._held_out:
                yield self.packed.text(number)

    @cached_property
    def _held_out(self) -> frozenset[int]:
        return frozenset(self.packed.pairs[self.packed.held_out, 1].tolist())


def token_stream(texts: Iterator[np.ndarray], separator: int, length: int) -> np.ndarray:
    """Return the first `length` ids of texts that are joined by the separator."""
    parts: list[np.ndarray] = []
    total = 0
    while total < length:
        text = next(texts)
        parts += [text, np.array([separator], text.dtype)]
        total += len(text) + 1
    return np.concatenate(parts)[:length]


@dataclass(frozen=True)
class DrawnDocuments:
    """Documents in chunks, and questions about them.

    `chunks` are the text ids of the chunks of each document, and `numbers` the documents' numbers in the corpus.
    `queries` are the token ids of each question, `gold` the (document, chunk) that answers it, and `query_keys` numbers
    that are equal for equal questions.
    """

    chunks: list[list[int]]
    queries: list[np.ndarray]
    gold: list[tuple[int, int]]
    query_keys: list[int]
    numbers: list[int]


@dataclass(frozen=True)
class DocumentOptions:
    """Lengths in tokens, and probabilities, for sampling documents and questions."""

    max_document: int = 2048
    min_document: int = 256
    max_chunk: int = 128
    max_query: int = 48
    questions: int = 6
    title_chunk_share: float = 0.7
    title_query_share: float = 0.6


class DocumentSampler:
    """Samples windows of documents with questions, which are those of the data and pieces of chunks.

    A share of the questions begins or ends with the title of the document, so that only the vector of a chunk in the
    context of its document can answer them.
    """

    def __init__(self, packed: PackedCorpus, options: DocumentOptions):
        self.packed, self.options = packed, options
        held = set(packed.pairs[packed.held_out, 1].tolist())
        usable = (packed.place[:, 0] >= 0) & (packed.place[:, 1] >= 0) & ~packed.held_out
        self.questions: dict[int, list[tuple[int, int]]] = {}
        for row in np.flatnonzero(usable):
            document, chunk = packed.place[row].tolist()
            self.questions.setdefault(document, []).append((chunk, int(packed.pairs[row, 0])))
        counts = packed.arrays["n_chunks"]
        self.documents = np.array(
            [number for number in np.flatnonzero(counts >= 2) if held.isdisjoint(packed.document(int(number)).tolist())]
        )
        if not len(self.documents):
            raise ConfigError("there is no document of at least two chunks to train on; pack chunks.*.jsonl.gz files")
        self.shares = counts[self.documents] ** 0.5 / (counts[self.documents] ** 0.5).sum()

    def batch(self, step: int, size: int, seed: int) -> DrawnDocuments:
        """Return the documents and questions of a step."""
        generator = np.random.default_rng((seed, step))
        drawn = DrawnDocuments([], [], [], [], [])
        replace = size > len(self.documents)
        for number in generator.choice(self.documents, size, replace=replace, p=self.shares).tolist():
            self._add(drawn, number, generator)
        return drawn

    def _add(self, drawn: DrawnDocuments, number: int, generator: np.random.Generator) -> None:
        options, document = self.options, self.packed.document(number)
        start, stop = self._window(document, generator)
        title = self.packed.title(number)
        named = title >= 0 and generator.random() < options.title_chunk_share
        first = 1 if named else 0
        place = len(drawn.chunks)
        drawn.chunks.append([title] * first + document[start:stop].tolist())
        drawn.numbers.append(number)
        known = [(chunk, query) for chunk, query in self.questions.get(number, ()) if start <= chunk < stop]
        generator.shuffle(known)
        wanted = int(generator.integers(1, options.questions + 1))
        for chunk, query in known[: (wanted + 1) // 2]:
            self._ask(drawn, self.packed.text(query), query, (place, first + chunk - start), title, generator)
        for chunk in generator.integers(start, stop, wanted // 2).tolist():
            piece = self._piece(int(document[chunk]), generator)
            self._ask(drawn, piece, -len(drawn.queries) - 1, (place, first + chunk - start), title, generator)

    def _ask(
        self,
        drawn: DrawnDocuments,
        query: np.ndarray,
        key: int,
        gold: tuple[int, int],
        title: int,
        generator: np.random.Generator,
    ) -> None:
        if title >= 0 and generator.random() < self.options.title_query_share:
            parts = [self.packed.text(title, self.options.max_query // 2), query]
            query, key = np.concatenate(parts if generator.random() < 0.5 else parts[::-1]), -len(drawn.queries) - 1
        drawn.queries.append(query[: self.options.max_query])
        drawn.query_keys.append(key)
        drawn.gold.append(gold)

    def _window(self, document: np.ndarray, generator: np.random.Generator) -> tuple[int, int]:
        """Return `[start, stop)` of consecutive chunks that fit a length sampled uniformly in its logarithm."""
        options = self.options
        budget = np.exp(generator.uniform(np.log(options.min_document), np.log(options.max_document)))
        lengths = np.minimum(self.packed.lengths[document], options.max_chunk).astype(np.int64) + 1
        start = 0 if generator.random() < 0.5 else int(generator.integers(len(document)))
        total = np.cumsum(lengths[start:])
        stop = start + max(2, int(np.searchsorted(total, budget, side="right")))
        return max(0, min(start, len(document) - 2)), min(stop, len(document))

    def _piece(self, text: int, generator: np.random.Generator) -> np.ndarray:
        ids = self.packed.text(text, self.options.max_chunk)
        length = min(len(ids), int(generator.integers(4, 17)))
        start = int(generator.integers(len(ids) - length + 1))
        return ids[start : start + length]


def parse_factor(option: str) -> tuple[str, float]:
    """Return pattern and factor of `pattern=factor`. Raises ConfigError if it is malformed or negative."""
    pattern, _, factor = option.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = -1.0
    if not pattern or not value >= 0:
        raise ConfigError(f"{option!r} is not GROUP=NUMBER, with a number of at least 0")
    return pattern, value


def matches(name: str, pattern: str) -> bool:
    """Return True if a pattern, which may end in `*`, matches the name of a group."""
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
