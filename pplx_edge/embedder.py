"""The facade: texts in, vectors out.

Tokenises, cuts into batches, runs a session and quantises; order is kept and N in is N out.
"""

import warnings
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
from tqdm import tqdm

from pplx_edge import backends, hub, quantize
from pplx_edge.batching import collate, plan_batches
from pplx_edge.errors import InputError, TextTooLong
from pplx_edge.preparation import ready_directory
from pplx_edge.similarity import similarity
from pplx_edge.sources import Source
from pplx_edge.streaming import StreamEncoder, in_thread
from pplx_edge.tokenization import Tokenizer
from pplx_edge.types import ChunkVector, Precision, Session, StreamOptions, TokenRow

_PROGRESS_DELAY_SECONDS = 2.0
_PROBE = "One text, by whose vector a model is known again."


def load(
    name_or_path: str | Path,
    *,
    backend: str = "auto",
    format: str | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    threads: int | None = None,
) -> "Embedder":
    """An Embedder for a built-in name (`nano`), a directory or a hub repository (`perplexity-ai/pplx-embed-v1-0.6b`).

    `format` is what a checkpoint is turned into when it is opened for the first time (`onnx-int8` when None); the
    result is kept in the cache. `revision` pins a hub commit. `offline` forbids the network (None: as the environment
    says). `threads` limits the processor threads of one call.

    Raises ModelNotFound, OfflineError, CheckpointError, UnsupportedModel or ArtifactError.
    """
    backend = backends.require_backend(backend)
    directory = hub.resolve(name_or_path, revision=revision, offline=offline)
    directory = ready_directory(directory, backend, format, source_name=hub.source_name(name_or_path))
    session = backends.open_session(backend, directory, threads=threads)
    return Embedder(session, Tokenizer.open(directory, session.spec))


class Embedder:
    """Texts to vectors. Safe to call from several threads."""

    def __init__(self, session: Session, tokenizer: Tokenizer):
        self.session: Session = session
        self.tokenizer = tokenizer

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
        options: StreamOptions | None = None,
        resume: str | None = None,
    ) -> Generator[ChunkVector, None, None]:
        """The chunks of a document of any length with their vectors, in order, each as soon as it is final.

        `source` is the text itself, the Path of a file, an opened file, or an iterator of texts or of (text, page),
        which may never end. A document that fits the window is read in one pass and has the codes of `encode_chunks`;
        a longer one is read in windows that overlap (see `pplx_edge.late_chunking`). Memory is set by window and model
        alone. Nothing is read ahead of the consumer but one window, and closing the iterator closes what was opened.

        `resume` is the `position` of a vector that was yielded by the same model with the same options: the source is
        read again from its beginning, what was yielded is not computed again, and what follows has the same codes.

        Raises InputError for bad options, a source that is not text (after the vectors before that place), or a
        position of something else; NumericalError naming the chunk whose vector is not finite. What a source raises
        goes through.
        """
        return self._stream_encoder(precision, dim, options).encode(source, resume)

    def encode_stream_async(
        self,
        source: Source,
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        options: StreamOptions | None = None,
        resume: str | None = None,
    ) -> AsyncIterator[ChunkVector]:
        """`encode_stream` for servers: the work is done in a thread, and only when a vector is awaited."""
        return in_thread(self.encode_stream(source, precision, dim=dim, options=options, resume=resume))

    def encode_streams(
        self,
        sources: Iterable[Source],
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        options: StreamOptions | None = None,
    ) -> Iterator[tuple[int, ChunkVector]]:
        """`encode_stream` of many documents, in order, with their numbers; short ones share passes of the model.

        Some 16,000 tokens are read together, over which the first vectors wait.
        """
        return self._stream_encoder(precision, dim, options).encode_many(sources)

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

    def _stream_encoder(self, precision: Precision, dim: int | None, options: StreamOptions | None) -> StreamEncoder:
        precision = quantize.require_precision(precision)
        return StreamEncoder(
            self.session,
            self.tokenizer,
            precision,
            quantize.require_dim(dim, self.dim, precision),
            options or StreamOptions(),
            self.fingerprint,
        )

    @cached_property
    def fingerprint(self) -> bytes:
        """Tells the model from others, whatever it is called: what it is, and what it makes of a text."""
        return repr(self.session.spec).encode() + self.encode([_PROBE], show_progress=False).tobytes()

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
    total = sum(len(rows[i]) for batch in batches for i in batch)
    delay = _PROGRESS_DELAY_SECONDS if show is None else 0.0
    with tqdm(
        total=total,
        unit="tok",
        unit_scale=True,
        desc="embedding",
        delay=delay,
        disable=None if show is None else not show,
    ) as bar:
        for batch in batches:
            yield batch
            bar.update(sum(len(rows[i]) for i in batch))
