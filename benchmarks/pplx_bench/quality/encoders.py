"""Texts to float vectors, for our own models and for sentence-transformers, with what it cost.

Every text is cut to a number of tokens when it is longer, and the cut ones are counted.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pplx_bench.quality.contexts import windows
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError, MissingExtra, ModelError
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import Session

EXTRA = "quality"


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Vectors float32 `[N, D]` of texts in their order, and what they cost.

    `n_tokens` were read after cutting `n_cut` texts; `n_windows` were read as documents (0: each text alone).
    """

    means: np.ndarray
    n_tokens: int
    n_cut: int
    n_windows: int
    seconds: float


class Encoder(Protocol):
    """An opened model."""

    def texts(self, texts: Sequence[str]) -> Encoded:
        """A vector a text, each read alone."""
        ...

    def documents(self, documents: Sequence[Sequence[str]]) -> Encoded:
        """A vector a piece, read among the pieces of its document; documents and pieces in their order."""
        ...

    def close(self) -> None:
        """Lets go of the model's memory."""
        ...


class EdgeEncoder:
    """One of our own models: float32 means, from which every precision and dimension follows.

    A text is cut to `max_tokens`; a document over `window` tokens is read in windows of whole pieces.
    """

    def __init__(self, embedder: Embedder, max_tokens: int, window: int):
        self.embedder = embedder
        self.max_tokens, self.window = min(max_tokens, embedder.max_tokens), min(window, embedder.max_tokens)

    def texts(self, texts: Sequence[str]) -> Encoded:
        """Means of texts, each read alone."""
        lengths = [len(row) for row in self.embedder.tokenizer.text_rows(texts)]
        started = time.perf_counter()
        with _cuts_counted():
            means = _limited(self.embedder, self.max_tokens).encode(texts, "float32", truncate=True)
        return _encoded(means, lengths, self.max_tokens, 0, started)

    def documents(self, documents: Sequence[Sequence[str]]) -> Encoded:
        """Means of pieces, each read among the pieces of its window."""
        rows = self.embedder.tokenizer.document_rows(documents)
        cut = [windows([stop - start for start, stop in row.bounds], self.window) for row in rows]
        read = [pieces[part] for pieces, parts in zip(documents, cut, strict=True) for part in parts]
        lengths = [len(row) for row in self.embedder.tokenizer.document_rows(read)]
        started = time.perf_counter()
        with _cuts_counted():
            means = _limited(self.embedder, self.window).encode_chunks(read, "float32", truncate=True)
        found = np.concatenate([np.empty((0, self.embedder.dim), np.float32), *means])
        return _encoded(found, lengths, self.window, len(read), started)

    def close(self) -> None:
        """Closes the embedder."""
        self.embedder.close()


class SentenceTransformerEncoder:
    """A sentence-transformers model, in float32 on the processor."""

    def __init__(self, directory: Path, max_tokens: int, threads: int | None):
        try:
            import torch
            from sentence_transformers import SentenceTransformer
            from transformers.utils.logging import disable_progress_bar
        except ImportError as error:
            raise MissingExtra(f"the peer {directory.name} ({error.name} is not installed)", EXTRA) from error
        disable_progress_bar()  # of reading the weights
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            self.model: Any = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
        except Exception as error:  # the library's loaders share no base but Exception
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{directory}: sentence-transformers cannot open it ({reason})") from error
        self.max_tokens = self.model.max_seq_length = min(max_tokens, _positions(self.model) or max_tokens)

    def texts(self, texts: Sequence[str]) -> Encoded:
        """Vectors of texts, each read alone, as the model gives them."""
        ids = self.model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"] if texts else []
        started = time.perf_counter()
        vectors = self.model.encode(list(texts), batch_size=32, show_progress_bar=False, convert_to_numpy=True)
        means = np.asarray(vectors, np.float32).reshape(len(texts), -1)
        return _encoded(means, [len(row) for row in ids], self.max_tokens, 0, started)

    def documents(self, documents: Sequence[Sequence[str]]) -> Encoded:
        """Refused: a sentence-transformers model reads each text alone."""
        raise InputError("a sentence-transformers peer reads no documents in context; choose --context off or title")

    def close(self) -> None:
        """Lets go of the model."""
        self.model = None


class _Limited(Embedder):
    """The same session with a lower limit."""

    def __init__(self, session: Session, tokenizer: Tokenizer, limit: int):
        super().__init__(session, tokenizer)
        self._limit = limit

    @property
    def max_tokens(self) -> int:
        """Tokens that one text or document may have."""
        return self._limit


def _limited(embedder: Embedder, limit: int) -> Embedder:
    session: Any = embedder.session  # when the embedder is closed, what stands there says so
    return _Limited(session, embedder.tokenizer, limit)


@contextmanager
def _cuts_counted() -> Iterator[None]:
    """Silences the warning of a cut text, as cut texts are counted and reported."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".* cut to .* tokens", category=UserWarning)
        yield


def joined(first: Encoded, second: Encoded) -> Encoded:
    """What both cost together, with the vectors of the first."""
    return replace(
        first,
        n_tokens=first.n_tokens + second.n_tokens,
        n_cut=first.n_cut + second.n_cut,
        seconds=first.seconds + second.seconds,
    )


def _encoded(means: np.ndarray, lengths: Sequence[int], limit: int, n_windows: int, started: float) -> Encoded:
    seconds = time.perf_counter() - started
    n_tokens = sum(min(length, limit) for length in lengths)
    return Encoded(means, n_tokens, sum(length > limit for length in lengths), n_windows, seconds)


def _positions(model: Any) -> int | None:
    """Tokens that the network under a sentence-transformers model has positions for, where it says so."""
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    return getattr(config, "max_position_embeddings", None)
