"""What is compared: our models, sentence-transformers peers and BM25, each opened when its first vectors are needed.

A system prepares a task in a context (it encodes; once, for all its variants) and ranks it for each variant.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pplx_bench.beir import RetrievalTask
from pplx_bench.quality.contexts import ALONE, Context, passage_texts
from pplx_bench.quality.encoders import Encoded, Encoder, joined
from pplx_bench.quality.ranking import rank
from pplx_bench.quality.vectors import kept
from pplx_edge.vectors.codes import quantize, truncate_dims
from pplx_edge.weights.artifact import Artifact, is_artifact, sha256

TERMS = "terms"  # the precision of what has no vectors
SCORED_AS = {"float32": "float32", "int8": "int8", "binary": "ubinary"}  # bits are compared packed, by Hamming


@dataclass(frozen=True, slots=True)
class Variant:
    """Codes of a precision, of the first `dim` components (None: all that the model has)."""

    precision: str
    dim: int | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens that were read, texts that were cut, windows of documents (0: none), and seconds of encoding."""

    n_tokens: int = 0
    n_cut: int = 0
    n_windows: int = 0
    seconds: float = 0.0


class Prepared(Protocol):
    """A task that can be ranked."""

    cost: Cost

    def dim(self, variant: Variant) -> int | None:
        """Components that are compared; None where there are no vectors."""
        ...

    def rank(self, variant: Variant, k: int) -> np.ndarray:
        """Places in the corpus of the `k` best passages of each query, best first: int64 `[Q, min(k, N)]`."""
        ...


class System(Protocol):
    """One thing to compare. `label` heads its column, `digest` is of its files, `limits` are those that it reads by."""

    label: str
    name: str
    format: str | None
    digest: str
    contexts: Sequence[Context]
    variants: Sequence[Variant]

    def limits(self, context: Context) -> dict[str, int | None]:
        """`max_tokens` and `window` as far as they matter in a context."""
        ...

    def prepare(self, task: RetrievalTask, context: Context) -> Prepared:
        """The task, encoded."""
        ...

    def close(self) -> None:
        """Lets go of what was opened."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """Tokens a text and tokens a document that a system reads, and where its vectors are kept (None: nowhere)."""

    max_tokens: int = 512
    window: int | None = None
    vectors: Path | None = None


class DenseSystem:
    """A model that makes vectors."""

    def __init__(
        self,
        names: tuple[str, str, str | None],
        digest: str,
        variants: Sequence[Variant],
        contexts: Sequence[Context],
        reading: Reading,
        opener: Callable[[], Encoder],
    ):
        self.label, self.name, self.format = names
        self.digest, self.variants, self.contexts = digest, variants, contexts
        self._reading, self._opener = reading, opener
        self._encoder: Encoder | None = None

    def limits(self, context: Context) -> dict[str, int | None]:
        """The cut of a text; in context the window of a document as well, as queries are read by the first."""
        return {"max_tokens": self._reading.max_tokens, "window": self._reading.window if context == "on" else None}

    def prepare(self, task: RetrievalTask, context: Context) -> "DenseTask":
        """Vectors of the queries and of the passages; queries are the same in every context."""
        queries = self._texts([query.text for query in task.queries])
        alone = context != "on"
        passages = self._texts(passage_texts(task, context)) if alone else self._documents(task)
        return DenseTask(queries, passages)

    def close(self) -> None:
        """Closes the model if it was opened."""
        if self._encoder is not None:
            self._encoder.close()
        self._encoder = None

    def _texts(self, texts: list[str]) -> Encoded:
        made_of = [self.digest, self._reading.max_tokens, texts]
        return kept(self._reading.vectors, made_of, lambda: self._opened().texts(texts))

    def _documents(self, task: RetrievalTask) -> Encoded:
        documents = [[task.corpus[place].text for place in places] for places in task.documents]
        made_of = [self.digest, self._reading.window, documents]
        found = kept(self._reading.vectors, made_of, lambda: self._opened().documents(documents))
        means = np.empty_like(found.means)
        means[[place for places in task.documents for place in places]] = found.means  # from documents to corpus
        return Encoded(means, found.n_tokens, found.n_cut, found.n_windows, found.seconds)

    def _opened(self) -> Encoder:
        if self._encoder is None:
            self._encoder = self._opener()
        return self._encoder


class DenseTask:
    """Vectors of a task: float32 means of queries and of passages."""

    def __init__(self, queries: Encoded, passages: Encoded):
        both = joined(passages, queries)
        self.cost = Cost(both.n_tokens, both.n_cut, both.n_windows, both.seconds)
        self._queries, self._passages = queries.means, passages.means

    def dim(self, variant: Variant) -> int:
        """Components that are compared."""
        return variant.dim or self._passages.shape[1]

    def rank(self, variant: Variant, k: int) -> np.ndarray:
        """Dimensions cut, then quantised, then compared exactly."""
        precision: Any = SCORED_AS[variant.precision]
        queries, passages = (
            quantize(truncate_dims(means, variant.dim), precision) for means in (self._queries, self._passages)
        )
        return rank(queries, passages, k)


class TermSystem:
    """BM25: no vectors, no limit of tokens."""

    label = name = "bm25"
    format: str | None = None
    contexts: Sequence[Context] = ALONE
    variants: Sequence[Variant] = (Variant(TERMS),)

    def __init__(self, digest: str):
        self.digest = digest

    def limits(self, context: Context) -> dict[str, int | None]:
        """None: a text is read whole."""
        return {"max_tokens": None, "window": None}

    def prepare(self, task: RetrievalTask, context: Context) -> "TermTask":
        """The texts."""
        return TermTask([query.text for query in task.queries], passage_texts(task, context))

    def close(self) -> None:
        """Nothing is open."""


class TermTask:
    """Texts of a task."""

    cost = Cost()

    def __init__(self, queries: list[str], passages: list[str]):
        self._queries, self._passages = queries, passages

    def dim(self, variant: Variant) -> None:
        """There are no vectors."""

    def rank(self, variant: Variant, k: int) -> np.ndarray:
        """By BM25."""
        from pplx_bench.quality.bm25 import rank_by_terms

        return rank_by_terms(self._queries, self._passages, k)


def directory_digest(directory: Path) -> str:
    """SHA-256 of a model's files: those of the manifest where there is one, else of every file below."""
    if is_artifact(directory):
        files: Mapping[str, Any] = {name: entry["sha256"] for name, entry in Artifact.open(directory).files.items()}
    else:
        paths = sorted(path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        files = {path.relative_to(directory).as_posix(): sha256(path) for path in paths}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
