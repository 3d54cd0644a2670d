"""Encode texts to float vectors with our own models or sentence-transformers, and report the cost.

A text longer than the token limit is truncated, and truncated texts are counted.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from pplx_bench.retrieval.beir import RetrievalTask
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError, MissingExtra, ModelError

EXTRA = "quality"
Context = Literal["off", "on", "title"]  # a passage by itself, among the pieces of its document, or after its title
CONTEXTS: tuple[Context, ...] = get_args(Context)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Vectors of texts, float32 `[N, D]`, and their cost.

    `n_tokens` counts the tokens after truncating `n_cut` texts. `n_windows` is 0 if each text was encoded by itself.
    """

    means: np.ndarray
    n_tokens: int
    n_cut: int
    n_windows: int
    seconds: float

    def in_corpus_order(self, documents: Sequence[Sequence[int]]) -> "Encoded":
        """Return the vectors in the order of a corpus, given the corpus index of each piece of each document."""
        means = np.empty_like(self.means)
        means[[index for indices in documents for index in indices]] = self.means
        return replace(self, means=means)


class Encoder(Protocol):
    """An open model."""

    def texts(self, texts: Sequence[str]) -> Encoded:
        """Encode each text by itself."""
        ...

    def documents(self, documents: Sequence[Sequence[str]]) -> Encoded:
        """Encode each piece among the pieces of its document; documents and pieces stay in order."""
        ...

    def close(self) -> None:
        """Free the memory of the model."""
        ...


class EdgeEncoder:
    """One of our own models: float32 means, from which every precision and dimension follows.

    A text is truncated to `max_tokens`; a document longer than `window` tokens is split into windows of whole pieces.
    """

    def __init__(self, embedder: Embedder, max_tokens: int, window: int):
        self.embedder = embedder
        self.max_tokens, self.window = min(max_tokens, embedder.max_tokens), min(window, embedder.max_tokens)
        self.close = embedder.close

    def texts(self, texts: Sequence[str]) -> Encoded:
        """Encode each text by itself."""
        lengths = [len(row) for row in self.embedder.tokenizer.text_rows(texts)]
        started = time.perf_counter()
        with _limited(self.embedder, self.max_tokens) as limited:
            means = limited.encode(texts, "float32", truncate=True)
        return _encoded(means, lengths, self.max_tokens, 0, started)

    def documents(self, documents: Sequence[Sequence[str]]) -> Encoded:
        """Encode each piece among the pieces of its window."""
        rows = self.embedder.tokenizer.document_rows(documents)
        cut = [windows([stop - start for start, stop in row.bounds], self.window) for row in rows]
        parts = [pieces[window] for pieces, found in zip(documents, cut, strict=True) for window in found]
        lengths = [len(row) for row in self.embedder.tokenizer.document_rows(parts)]
        started = time.perf_counter()
        with _limited(self.embedder, self.window) as limited:
            means = limited.encode_chunks(parts, "float32", truncate=True)
        found = np.concatenate([np.empty((0, self.embedder.dim), np.float32), *means])
        return _encoded(found, lengths, self.window, len(parts), started)


class SentenceTransformerEncoder:
    """A sentence-transformers model, in float32 on the CPU."""

    def __init__(self, directory: Path, max_tokens: int, threads: int | None):
        try:
            import torch
            from sentence_transformers import SentenceTransformer
            from transformers.utils.logging import disable_progress_bar
        except ImportError as error:
            raise MissingExtra(f"the peer {directory.name} ({error.name} is not installed)", EXTRA) from error
        disable_progress_bar()  # shown while the weights are loaded
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            self.model: Any = SentenceTransformer(str(directory), device="cpu", local_files_only=True)
        except Exception as error:  # the library's loaders share no base class but Exception
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{directory}: sentence-transformers cannot open it ({reason})") from error
        config = getattr(getattr(self.model[0], "auto_model", None), "config", None)
        positions = getattr(config, "max_position_embeddings", None)
        self.max_tokens = self.model.max_seq_length = min(max_tokens, positions or max_tokens)

    def texts(self, texts: Sequence[str]) -> Encoded:
        """Encode each text by itself."""
        ids = self.model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"] if texts else []
        started = time.perf_counter()
        vectors = self.model.encode(list(texts), batch_size=32, show_progress_bar=False, convert_to_numpy=True)
        means = np.asarray(vectors, np.float32).reshape(len(texts), -1)
        return _encoded(means, [len(row) for row in ids], self.max_tokens, 0, started)

    def documents(self, documents: Sequence[Sequence[str]]) -> Encoded:
        """Raise InputError: a sentence-transformers model encodes each text by itself."""
        raise InputError("a sentence-transformers peer encodes no documents; choose --context off or title")

    def close(self) -> None:
        """Free the memory of the model."""
        self.model = None


def passage_texts(task: RetrievalTask, context: Context) -> list[str]:
    """Return the text of each passage in the context `off` or `title`, in corpus order."""
    if context == "title":
        return [f"{passage.title} {passage.text}".strip() for passage in task.corpus]
    return [passage.text for passage in task.corpus]


def document_texts(task: RetrievalTask) -> list[list[str]]:
    """Return the texts of the pieces of each document."""
    return [[task.corpus[index].text for index in indices] for indices in task.documents]


def windows(lengths: Sequence[int], limit: int) -> list[slice]:
    """Split the pieces of a document into windows of at most `limit` tokens, counting a separator between two pieces.

    Returns as few windows as possible, and among those the split whose longest window is shortest, so that no window
    is left with one or two pieces and hardly any context. A piece longer than the limit is a window by itself.
    """
    if not lengths:
        return []
    low, high = min(limit, max(lengths)), limit
    fewest = len(_filled(lengths, high))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(_filled(lengths, middle)) <= fewest else (middle + 1, high)
    return _filled(lengths, high)


def _filled(lengths: Sequence[int], limit: int) -> list[slice]:
    """Return windows filled from the left, each as full as the limit allows."""
    found, start, total = [], 0, -1
    for i, length in enumerate(lengths):
        if i > start and total + 1 + length > limit:
            found.append(slice(start, i))
            start, total = i, -1
        total += 1 + length
    return [*found, slice(start, len(lengths))]


class _Limited(Embedder):
    """An embedder with a lower token limit."""

    limit = 0

    @property
    def max_tokens(self) -> int:
        return self.limit


@contextmanager
def _limited(embedder: Embedder, limit: int) -> Iterator[Embedder]:
    """Yield the embedder with a lower limit, without warnings about truncated texts, because they are counted."""
    session: Any = embedder.session
    limited = _Limited(session, embedder.tokenizer)
    limited.limit = limit
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".* cut to .* tokens", category=UserWarning)
        yield limited


def _encoded(means: np.ndarray, lengths: Sequence[int], limit: int, n_windows: int, started: float) -> Encoded:
    seconds = time.perf_counter() - started
    n_tokens = sum(min(length, limit) for length in lengths)
    return Encoded(means, n_tokens, sum(length > limit for length in lengths), n_windows, seconds)
