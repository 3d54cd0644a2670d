"""The public interface: turn inputs into vectors.

An `Embedder` tokenizes its inputs, groups them into batches, runs a session and quantizes the results. It returns one
vector per input, in input order.
"""

import warnings
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import numpy as np

from pplx_edge.errors import InputError, TextTooLong
from pplx_edge.preparation import resolve_model
from pplx_edge.registry import BACKENDS
from pplx_edge.streaming import StreamEncoder, in_thread
from pplx_edge.text.batching import collate, plan_batches
from pplx_edge.text.sources import Source
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import ChunkVector, Precision, Session, SessionOptions, StreamOptions, TokenRow
from pplx_edge.vectors.codes import quantize, require_dim, require_finite, require_precision, truncate_dims
from pplx_edge.vectors.similarity import similarity

_PROGRESS_DELAY_SECONDS = 2.0
_STREAM_DEFAULTS = StreamOptions()


def load(
    name_or_path: str | Path,
    *,
    backend: str = "auto",
    artifact_format: str | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    threads: int | None = None,
    weights: str | None = None,
    memory_mb: int | None = None,
    compute_units: str | None = None,
) -> "Embedder":
    """Load a model and return it as an `Embedder`.

    `name_or_path` is a built-in name (`nano`), a directory or a Hugging Face repository
    (`perplexity-ai/pplx-embed-v1-0.6b`), which is downloaded if it is not in the cache.

    `backend` is `native`, `onnx`, `mlx`, `coreml`, `openvino`, `gguf` or `auto`. `auto` picks the backend that opens
    `artifact_format` or the files in the directory; for a checkpoint it picks mlx on Apple Silicon and native
    elsewhere, or onnx where the CPU kernels are not built or the processor is too old for them. `artifact_format` is
    the format that a checkpoint is converted to the first time it is loaded (default: the backend's own, `native-int8`
    for native; mlx opens checkpoints directly); the converted model is cached. `revision` pins a commit, tag or branch
    on the hub.
    `offline=True` forbids network access, and None follows HF_HUB_OFFLINE. The remaining options belong to individual
    backends, and the other backends reject them: see `SessionOptions`.

    Raises ModelNotFound, OfflineError, CheckpointError, UnsupportedModel, ArtifactError, MissingExtra or InputError.
    """
    options = SessionOptions(threads=threads, weights=weights, memory_mb=memory_mb, compute_units=compute_units)
    model = resolve_model(
        name_or_path, backend=backend, artifact_format=artifact_format, revision=revision, offline=offline
    )
    session = model.open(options)
    return Embedder(session, Tokenizer.open(model.directory, session.spec), model.fingerprint)


class Embedder:
    """Encode inputs as vectors. Safe to call from several threads.

    `fingerprint` is a hash of the model files ("" if unknown). It distinguishes models with the same architecture, so
    that a stream is never resumed with a different model.
    """

    def __init__(self, session: Session, tokenizer: Tokenizer, fingerprint: str = ""):
        self.session: Session = session
        self.tokenizer, self.fingerprint = tokenizer, fingerprint

    @property
    def dim(self) -> int:
        """The native number of dimensions of a vector."""
        return self.session.spec.dim

    @property
    def max_tokens(self) -> int:
        """The maximum number of tokens in one input, or in one document including all of its chunks."""
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
        """Encode a list of strings and return one vector per string, in input order.

        The result depends on `precision`: int8 codes `[N, D]` for "int8", ±1 as int8 `[N, D]` for "binary", packed bits
        as uint8 `[N, D/8]` for "ubinary", and the mean vectors as float32 `[N, D]` for "float32".

        `dim` keeps only the first components (Matryoshka truncation, 128 or more). An empty string is encoded as a zero
        mean. A string of more than `max_tokens` tokens raises TextTooLong; with `truncate=True` it is cut to the limit
        and a warning reports how many strings were cut. If the work takes more than two seconds and stderr is a
        terminal, a progress bar appears; `show_progress` turns it on (True) or off (False).

        Raises InputError if `texts` is not a list of strings, and NumericalError, naming the input, if a vector
        contains NaN or infinity.
        """
        request = _Request("text", precision, dim, truncate, show_progress)
        return self._encode_rows(self.tokenizer.text_rows(texts), request)

    # These models use no query instruction and no document prefix, so queries and documents are encoded identically.
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
        """Encode documents that are already split into chunks, each chunk in the context of its whole document.

        Returns one array `[n_chunks, D]` per document. The model reads a document in one pass, with its chunks joined
        by the separator token, and each chunk's vector is the mean over its own tokens (late chunking, arXiv
        2409.04701). Encode a query as a document with one chunk. If `truncate=True` cuts a document, chunks beyond the
        limit are encoded as a zero mean. The options and errors are those of `encode`.
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
        """Split a document of any length into chunks and yield each with its vector, in document order.

        `source` is a string, a Path, a file object, or an iterator of strings or of `(text, page)` tuples. A document
        that fits in one window is read in one pass; if its chunks are joined by the separator token, the codes equal
        those of `encode_chunks`. A longer document is read in windows with overlapping context on both sides.

        Each vector is yielded as soon as it is final. At most one window and one block of the chunker are read ahead,
        so memory does not grow with the document. Closing the iterator releases all resources.

        `resume` is the `position` of the last chunk you received. The source is read again from its beginning, and the
        remaining chunks get the same codes as in an uninterrupted run. An exception raised by the source propagates
        after all vectors that were final at that point.

        Raises InputError if the options or the position do not fit this model or this document.
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
        """Do the same as `encode_stream` in an async generator, for servers.

        A background thread reads and encodes one window whenever the consumer needs more vectors.
        """
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
        """Encode many documents and yield `(document index, chunk)` tuples in order.

        Short documents are batched together, as in `encode`. `sources` is consumed one document at a time. `resume` is
        a position in the first document. If a source raises, a note on the exception gives the document's index.
        """
        return self._streams(precision, dim, options).documents(sources, resume)

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the similarity of every row of `a` with every row of `b`; see `pplx_edge.similarity`."""
        return similarity(a, b)

    def close(self) -> None:
        """Release the model's memory. Using the embedder afterwards raises InputError."""
        self.session = cast(Session, _Closed())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _streams(self, precision: Precision, dim: int | None, options: StreamOptions) -> StreamEncoder:
        return StreamEncoder(self.session, self.tokenizer, self.fingerprint, precision, dim, options)

    def _encode_rows(self, rows: list[TokenRow], request: "_Request") -> np.ndarray:
        """Return the codes of all spans of all rows, in order."""
        precision = require_precision(request.precision)
        dim = require_dim(request.dim, self.dim, precision)
        rows = _within_limit(rows, self.max_tokens, request, self.session.backend)
        batches = plan_batches([len(row) for row in rows], self.session.policy)
        first_span = np.cumsum([0, *(len(row.bounds) for row in rows)])
        codes = np.repeat(quantize(np.zeros((1, dim), np.float32), precision), first_span[-1], axis=0)
        for picked in _with_progress(batches, rows, request.show_progress):
            means = self.session.span_means(collate([rows[i] for i in picked], self.tokenizer.sep_id))
            spans = np.concatenate([np.arange(first_span[i], first_span[i + 1]) for i in picked])
            require_finite(means, [f"{request.noun} {i}" for i in picked for _ in rows[i].bounds])
            codes[spans] = quantize(truncate_dims(means, dim), precision)
        return codes


class _Closed:
    """Replaces the session of a closed embedder and raises InputError on any use."""

    def __getattr__(self, name: str) -> Any:
        raise InputError("this embedder is closed; load the model again")


@dataclass(frozen=True, slots=True)
class _Request:
    """The options of one call, and the noun that messages use for a row."""

    noun: str
    precision: Precision
    dim: int | None
    truncate: bool
    show_progress: bool | None


def _within_limit(rows: list[TokenRow], limit: int, request: _Request, backend: str) -> list[TokenRow]:
    """Return the rows, cut to the limit if the request truncates. Raises TextTooLong if it does not."""
    long = [i for i, row in enumerate(rows) if len(row) > limit]
    if not long:
        return rows
    first, noun = long[0], request.noun
    if not request.truncate:
        more = f" ({len(long) - 1} more exceed it)" if len(long) > 1 else ""
        known = BACKENDS.get(backend)
        advice = "split it or pass truncate=True" + (
            f"; {known.longer_inputs}" if known and known.longer_inputs else ""
        )
        raise TextTooLong(
            f"{noun} {first} has {len(rows[first]):,} tokens, limit {limit:,}{more}; {advice}",
            index=first,
            n_tokens=len(rows[first]),
            limit=limit,
        )
    warnings.warn(
        f"{len(long)} of {len(rows)} {noun}s were cut to {limit:,} tokens, the first being {noun} {first}", stacklevel=4
    )
    return [row.cut(limit) if len(row) > limit else row for row in rows]


def _with_progress(batches: list[list[int]], rows: list[TokenRow], show: bool | None) -> Iterable[list[int]]:
    """Yield the batches while showing a progress bar that counts tokens."""
    if show is False:
        yield from batches
        return
    from tqdm import tqdm  # imported here so that commands without a progress bar start faster

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
