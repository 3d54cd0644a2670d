"""The facade: texts in, vectors out.

Tokenises, cuts into batches, runs a session and quantises; order is kept and N in is N out.
"""

import warnings
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from pplx_edge import backends
from pplx_edge.errors import InputError, TextTooLong
from pplx_edge.preparation import ready_directory
from pplx_edge.streaming import StreamEncoder, in_thread
from pplx_edge.text.batching import collate, plan_batches
from pplx_edge.text.sources import Source
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import ChunkVector, Precision, Session, SessionOptions, StreamOptions, TokenRow
from pplx_edge.vectors import codes as quantize
from pplx_edge.vectors.similarity import similarity
from pplx_edge.weights import hub
from pplx_edge.weights.artifact import Artifact, is_artifact

_PROGRESS_DELAY_SECONDS = 2.0
_STREAM_DEFAULTS = StreamOptions()


def load(
    name_or_path: str | Path,
    *,
    backend: str = "auto",
    format: str | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    threads: int | None = None,
    quantize: str | None = None,
    memory_mb: int | None = None,
    compute_units: str | None = None,
) -> "Embedder":
    """An Embedder for a built-in name (`nano`), a directory or a hub repository (`perplexity-ai/pplx-embed-v1-0.6b`).

    `format` is what a checkpoint is turned into when it is opened for the first time (`onnx-int8` when None); the
    result is kept in the cache. `revision` pins a hub commit. `offline` forbids the network (None: as the environment
    says). `backend` is onnx, mlx, coreml, or auto: what opens the format or the files that are there, and for a
    checkpoint mlx on Apple Silicon and onnx elsewhere. The rest are options of single backends, refused by the
    others: see `SessionOptions`.

    Raises ModelNotFound, OfflineError, CheckpointError, UnsupportedModel, ArtifactError, MissingExtra or InputError.
    """
    options = SessionOptions(threads=threads, quantize=quantize, memory_mb=memory_mb, compute_units=compute_units)
    directory = hub.resolve(name_or_path, revision=revision, offline=offline)
    backend = backends.backend_for(directory, backend, format)
    backends.require_installed(backend)
    directory = ready_directory(directory, backend, format, source_name=hub.source_name(name_or_path))
    session = backends.open_session(backend, directory, options)
    weights = Artifact.open(directory).fingerprint if is_artifact(directory) else ""
    return Embedder(session, Tokenizer.open(directory, session.spec), weights)


class Embedder:
    """Texts to vectors. Safe to call from several threads.

    `weights` tells models of one shape apart, so that a stream is not resumed with another one.
    """

    def __init__(self, session: Session, tokenizer: Tokenizer, weights: str = ""):
        self.session: Session = session
        self.tokenizer, self.weights = tokenizer, weights

    @property
    def dim(self) -> int:
        """Native width of a vector."""
        return self.session.spec.dim

    @property
    def max_tokens(self) -> int:
        """Tokens that one text, or one document with all its chunks, may have."""
        return self.session.spec.max_tokens

    def encode(
        self,
        texts: Sequence[str],
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        truncate: bool = False,
        show_progress: bool | None = None,
    ) -> np.ndarray:
        """One vector a text, in their order: int8 `[N, D]`, binary ±1 int8, ubinary uint8 `[N, D/8]` or float32 means.

        `dim` keeps the first components (matryoshka, from 128). An empty text gives the codes of a zero mean. A text
        over `max_tokens` raises TextTooLong unless `truncate`, which cuts it and warns with a count. A progress bar
        appears on a terminal's stderr when the work is long (`show_progress` True or False: always or never).

        Raises InputError for anything that is not a list of strings, NumericalError naming the text whose vector is
        not finite.
        """
        request = _Request("text", precision, dim, truncate, show_progress)
        return self._encode_rows(self.tokenizer.text_rows(texts), request)

    # This family adds no instruction to a query and no prefix to a document, so both are the same as any text.
    encode_query = encode_document = encode

    def encode_chunks(
        self,
        documents: Sequence[Sequence[str]],
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        truncate: bool = False,
        show_progress: bool | None = None,
    ) -> list[np.ndarray]:
        """One array `[n_chunks, D]` a document, each chunk's vector made in the context of its whole document.

        A document is read in one pass, chunks joined by the separator, and each chunk is the mean over its own tokens
        (late chunking, arXiv 2409.04701). A query is a document of one chunk. Chunks past the limit of a truncated
        document get the codes of a zero mean.
        """
        rows = self.tokenizer.document_rows(documents)
        codes = self._encode_rows(rows, _Request("document", precision, dim, truncate, show_progress))
        return np.split(codes, np.cumsum([len(row.bounds) for row in rows])[:-1]) if rows else []

    def encode_stream(
        self,
        source: Source,
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        options: StreamOptions = _STREAM_DEFAULTS,
        resume: str | None = None,
    ) -> Generator[ChunkVector, None, None]:
        """The chunks of a text of any length, in order, each with its vector in the context of what is around it.

        `source` is a string, a Path, a file object, or an iterator of strings or of (text, page). A text that fits one
        window is read in one pass: where chunks are joined by the separator, its codes are those of `encode_chunks`. A
        longer one is read in windows with margins. Vectors come as soon as they are final; nothing is read ahead of
        them but one window and one block of the chunker, and memory does not grow with the text. Closing the iterator
        lets go of everything.

        `resume` is the `position` of the last chunk that is there already: the source is read again from its beginning,
        and the same codes come as without the interruption. What the source raises comes after all final vectors.

        Raises InputError for options or a position that do not fit this model or this text.
        """
        return self._streams(precision, dim, options).vectors(source, resume)

    def encode_stream_async(
        self,
        source: Source,
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        options: StreamOptions = _STREAM_DEFAULTS,
        resume: str | None = None,
    ) -> AsyncGenerator[ChunkVector, None]:
        """`encode_stream` for servers: a thread reads and encodes, one window each time that vectors are asked for."""
        return in_thread(self._streams(precision, dim, options).windows(source, resume))

    def encode_streams(
        self,
        sources: Iterable[Source],
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        options: StreamOptions = _STREAM_DEFAULTS,
        resume: str | None = None,
    ) -> Generator[tuple[int, ChunkVector], None, None]:
        """The chunks of many documents, as `(index of the document, chunk)`, in order.

        Short documents share a pass, as texts do in `encode`. `sources` is taken from one by one. `resume` goes on
        within the first of them. An error of a source says in a note which it is.
        """
        return self._streams(precision, dim, options).documents(sources, resume)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """See `pplx_edge.similarity`: cosine or Hamming, by the vectors' own type."""
        return similarity(a, b)

    def close(self) -> None:
        """Lets go of the model's memory. Using the embedder afterwards raises InputError."""
        self.session = cast(Session, _Closed())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _streams(self, precision: Precision, dim: int | None, options: StreamOptions) -> StreamEncoder:
        return StreamEncoder(self.session, self.tokenizer, self.weights, precision, dim, options)

    def _encode_rows(self, rows: list[TokenRow], request: "_Request") -> np.ndarray:
        """Codes of all spans of all rows, in order."""
        precision = quantize.require_precision(request.precision)
        dim = quantize.require_dim(request.dim, self.dim, precision)
        rows = _within_limit(rows, self.max_tokens, request)
        batches = plan_batches([len(row) for row in rows], self.session.policy)
        first_span = np.cumsum([0, *(len(row.bounds) for row in rows)])
        codes = np.repeat(quantize.quantize(np.zeros((1, dim), np.float32), precision), first_span[-1], axis=0)
        for picked in _with_progress(batches, rows, request.show_progress):
            means = self.session.span_means(collate([rows[i] for i in picked], self.tokenizer.sep_id))
            spans = np.concatenate([np.arange(first_span[i], first_span[i + 1]) for i in picked])
            quantize.require_finite(means, [f"{request.noun} {i}" for i in picked for _ in rows[i].bounds])
            codes[spans] = quantize.quantize(quantize.truncate_dims(means, dim), precision)
        return codes


class _Closed:
    """Stands in for the session of a closed embedder."""

    def __getattr__(self, name: str) -> Any:
        raise InputError("this embedder is closed; load the model again")


@dataclass(frozen=True, slots=True)
class _Request:
    """What is wanted of the rows, and what a row is called in messages."""

    noun: str
    precision: Precision
    dim: int | None
    truncate: bool
    show_progress: bool | None


def _within_limit(rows: list[TokenRow], limit: int, request: _Request) -> list[TokenRow]:
    """The rows, those over the limit cut when that is wanted and refused otherwise."""
    long = [i for i, row in enumerate(rows) if len(row) > limit]
    if not long:
        return rows
    first, noun = long[0], request.noun
    if not request.truncate:
        more = f" (and {len(long) - 1} more are over it)" if len(long) > 1 else ""
        raise TextTooLong(
            f"{noun} {first}: {len(rows[first]):,} tokens, limit {limit:,}{more}; split it, or pass truncate=True",
            index=first,
            n_tokens=len(rows[first]),
            limit=limit,
        )
    warnings.warn(f"{len(long)} of {len(rows)} {noun}s cut to {limit:,} tokens, {noun} {first} first", stacklevel=4)
    return [row.cut(limit) if len(row) > limit else row for row in rows]


def _with_progress(batches: list[list[int]], rows: list[TokenRow], show: bool | None) -> Iterable[list[int]]:
    """The batches, with a bar that counts tokens."""
    if show is False:
        yield from batches
        return
    from tqdm import tqdm  # here, as a command that shows no bar is to start at once

    total = sum(len(rows[i]) for batch in batches for i in batch)
    delay = _PROGRESS_DELAY_SECONDS if show is None else 0.0
    with tqdm(
        total=total,
        unit="tok",
        unit_scale=True,
        desc="embedding",
        delay=delay,
        disable=None if show is None else False,
    ) as bar:
        for batch in batches:
            yield batch
            bar.update(sum(len(rows[i]) for i in batch))
