"""Encode a stream of text: yield the vector of each chunk as soon as it is final, in constant memory.

The pipeline is `pieces -> chunks -> windows -> Session.span_means -> codes`. Each step is a generator that pulls one
item at a time from the previous one, so nothing is read before it is needed, and closing the last generator closes all.
"""

import base64
import hashlib
import json
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.text.batching import collate, plan_batches
from pplx_edge.text.chunking import chunk_stream
from pplx_edge.text.sources import Source, pieces
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import ChunkVector, Precision, Session, StreamOptions, TextChunk
from pplx_edge.vectors.codes import quantize, require_dim, require_finite, require_precision, truncate_dims
from pplx_edge.vectors.late_chunking import ChunkTokens, Part, RunningMean, Window, WindowSizes, plan_windows

_POSITION_VERSION = 1
_MODEL_DIGEST_BYTES = 6
_HEADING_JOINT = " > "

Windows = Generator[list[ChunkVector], None, None]


@dataclass(frozen=True, slots=True)
class Position:
    """The point where a stream can be resumed: after the first `n_chunks` chunks.

    `stop` is the end of the last of these chunks, in characters, and `digest` is a hash of the document up to there.
    """

    n_chunks: int
    stop: int
    digest: str

    def token(self, settings: dict[str, Any]) -> str:
        """Return the position and the settings it is valid for as a string of letters, digits, `-` and `_`."""
        values = [_POSITION_VERSION, self.n_chunks, self.stop, self.digest, *settings.values()]
        return base64.urlsafe_b64encode(json.dumps(values, separators=(",", ":")).encode()).decode().rstrip("=")

    @classmethod
    def of(cls, token: str, settings: dict[str, Any]) -> "Position":
        """Return the position encoded in a token. Raises InputError, naming each setting that has changed since."""
        values = _token_values(token)
        if values[0] != _POSITION_VERSION or len(values) != 4 + len(settings):
            raise InputError("resume: the position is from a different release of pplx-edge; start from the beginning")
        changed = [
            f"{name} was {json.dumps(was)} and is now {json.dumps(now)}"
            for (name, now), was in zip(settings.items(), values[4:], strict=True)
            if was != now
        ]
        if changed:
            raise InputError(f"resume: the position was created with different settings: {'; '.join(changed)}")
        return cls(*values[1:4])

    def require_behind(self, index: int, chunk: TextChunk) -> None:
        """Raise InputError if the chunk is the last one before the position but does not match it."""
        if index == self.n_chunks - 1 and (chunk.stop, chunk.digest) != (self.stop, self.digest):
            raise InputError(
                f"resume: the position belongs to a different source: the text up to character {self.stop:,} differs"
            )


class StreamEncoder:
    """Encode streams with one model at one precision. `fingerprint` is a hash of the model files, "" if unknown.

    Raises InputError for an unknown precision, a `dim` that is out of range, or options that leave no room for chunks.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        fingerprint: str,
        precision: Precision,
        dim: int | None,
        options: StreamOptions,
    ):
        self.session, self.tokenizer, self.options = session, tokenizer, options
        self.precision: Precision = require_precision(precision)
        self.dim = require_dim(dim, session.spec.dim, self.precision)
        self.sizes = WindowSizes.of(options, session.spec)
        self.separates = session.spec.contextual if options.separator is None else options.separator
        spec = replace(session.spec, name="")
        self.settings: dict[str, Any] = {
            "model": hashlib.blake2b(f"{spec} {fingerprint}".encode(), digest_size=_MODEL_DIGEST_BYTES).hexdigest(),
            "precision": self.precision,
            "dim": self.dim,
            "window": self.sizes.window,
            "margin": self.sizes.margin,
            "heading_tokens": self.sizes.heading_tokens,
            "separator": self.separates,
            "chunk_tokens": options.chunk_tokens,
            "overlap": options.overlap,
            "markup": options.markup,
        }

    def windows(self, source: Source, resume: str | None = None) -> Windows:
        """Yield the vectors of a document in non-empty lists, at most one per window."""
        position = None if resume is None else Position.of(resume, self.settings)
        document = _Document(0, position)
        return self._each_window(source, document)

    def vectors(self, source: Source, resume: str | None = None) -> Generator[ChunkVector, None, None]:
        """Yield the vectors of a document."""
        return _flat(self.windows(source, resume))

    def documents(
        self, sources: Iterable[Source], resume: str | None = None
    ) -> Generator[tuple[int, ChunkVector], None, None]:
        """Yield `(document index, vector)` for many documents in order; `resume` is a position in the first one."""
        return self._each_group(sources, None if resume is None else Position.of(resume, self.settings))

    def _each_group(
        self, sources: Iterable[Source], position: Position | None
    ) -> Generator[tuple[int, ChunkVector], None, None]:
        """Encode windows of several documents together, in groups of half a window to a whole window of tokens."""
        pending: list[tuple[_Document, Window]] = []
        n_tokens, failure = 0, None
        with closing(self._all_windows(sources, position)) as windows:
            while True:
                try:
                    planned = next(windows, None)
                except Exception as error:  # re-raised below, after all vectors that are final were yielded
                    planned, failure = None, error
                if planned is None:
                    break
                n_more = len(planned[1].row)
                if n_tokens + n_more > self.sizes.window:
                    yield from self._encoded(pending)
                    pending, n_tokens = [], 0
                pending.append(planned)
                n_tokens += n_more
                if 2 * n_tokens >= self.sizes.window:
                    yield from self._encoded(pending)
                    pending, n_tokens = [], 0
        yield from self._encoded(pending)
        if failure is not None:
            raise failure

    def _each_window(self, source: Source, document: "_Document") -> Windows:
        with closing(self._planned(source, document)) as windows:
            for window in windows:
                if vectors := [vector for _, vector in self._encoded([(document, window)])]:
                    yield vectors

    def _all_windows(
        self, sources: Iterable[Source], position: Position | None
    ) -> Generator[tuple["_Document", Window], None, None]:
        for index, source in enumerate(sources):
            document = _Document(index, None if index else position)
            try:
                with closing(self._planned(source, document)) as windows:
                    for window in windows:
                        yield document, window
            except Exception as error:
                error.add_note(f"in document {index}")
                raise

    def _planned(self, source: Source, document: "_Document") -> Generator[Window, None, None]:
        """Yield the windows of a document, except those that contain only chunks before the resume position."""
        with closing(pieces(source)) as stream:
            tokens = self._chunk_tokens(chunk_stream(stream, self.tokenizer, self.options), document)
            for window in plan_windows(tokens, self.sizes, self.tokenizer.sep_id if self.separates else None):
                if any(part.index >= document.n_skipped for part in window.parts):
                    yield window
        if document.n_chunks < document.n_skipped:
            raise InputError(
                f"resume: the position belongs to a different source: the source has {document.n_chunks:,} chunks, "
                f"the position is after chunk {document.n_skipped:,}"
            )

    def _chunk_tokens(self, chunks: Iterator[TextChunk], document: "_Document") -> Iterator[ChunkTokens]:
        heading, heading_ids = (), np.empty(0, np.int64)
        for index, chunk in enumerate(chunks):
            document.n_chunks += 1
            if document.position is not None:
                document.position.require_behind(index, chunk)
            if self.sizes.heading_tokens and chunk.heading != heading:
                heading = chunk.heading
                heading_ids = self.tokenizer.text_rows([_HEADING_JOINT.join(heading)])[0].ids
            # Without a separator token, the whitespace between chunks keeps words apart, as in the document.
            text = chunk.text if self.separates else chunk.gap + chunk.text
            yield ChunkTokens(chunk, self.tokenizer.text_rows([text])[0].ids, heading_ids)

    def _encoded(self, windows: list[tuple["_Document", Window]]) -> Iterator[tuple[int, ChunkVector]]:
        """Yield `(document index, vector)` for each chunk that ends in one of the windows, in order."""
        for (document, window), means in zip(windows, self._means([window for _, window in windows]), strict=True):
            require_finite(means, [f"document {document.index}, chunk {p.index}" for p in window.parts])
            for part, part_mean in zip(window.parts, means, strict=True):
                mean = document.running.add(part, part_mean)
                if mean is not None and part.index >= document.n_skipped:
                    yield document.index, self._vector(part, mean)

    def _means(self, windows: list[Window]) -> list[np.ndarray]:
        """Return the means of the parts of each window, float32 `[n_parts, D]`, computed in the session's batches."""
        means = [np.zeros((len(window.parts), self.session.spec.dim), np.float32) for window in windows]
        rows = [window.row for window in windows]
        for picked in plan_batches([len(row) for row in rows], self.session.policy):
            found = self.session.span_means(collate([rows[i] for i in picked], self.tokenizer.sep_id))
            first = 0
            for i in picked:
                means[i] = found[first : first + len(rows[i].bounds)]
                first += len(rows[i].bounds)
        return means

    def _vector(self, part: Part, mean: np.ndarray) -> ChunkVector:
        chunk = part.chunk
        codes = quantize(truncate_dims(mean[None], self.dim), self.precision)[0]
        return ChunkVector(
            index=part.index,
            start=chunk.start,
            stop=chunk.stop,
            codes=codes,
            line=chunk.line,
            page=chunk.page,
            heading=chunk.heading,
            tokens=part.n_tokens,
            position=Position(part.index + 1, chunk.stop, chunk.digest).token(self.settings),
        )


async def in_thread(windows: Windows) -> AsyncGenerator[ChunkVector, None]:
    """Yield the vectors of windows that are encoded in a background thread, one window at a time, on demand.

    Closing or cancelling returns immediately; the thread finishes its current window and then releases its resources.
    """
    import asyncio  # imported here because it takes longer than the rest of this module
    from concurrent.futures import ThreadPoolExecutor

    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pplx-edge-stream")
    loop = asyncio.get_running_loop()
    try:
        while vectors := await loop.run_in_executor(thread, next, windows, None):
            for vector in vectors:
                yield vector
    finally:
        thread.submit(windows.close)
        thread.shutdown(wait=False)


def _flat(windows: Windows) -> Generator[ChunkVector, None, None]:
    with closing(windows):
        for vectors in windows:
            yield from vectors


@dataclass(slots=True)
class _Document:
    """The state of a document that is being encoded."""

    index: int
    position: Position | None = None
    n_chunks: int = 0
    running: RunningMean = field(default_factory=RunningMean)

    @property
    def n_skipped(self) -> int:
        """The number of chunks before the resume position."""
        return self.position.n_chunks if self.position else 0


def _token_values(token: str) -> list[Any]:
    """Decode a token and return its values. Raises InputError unless the first four have the right types."""
    values: Any = None
    with suppress(ValueError, TypeError, RecursionError):
        values = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    match values:
        case [int(), int(n_chunks), int(stop), str(), *_] if n_chunks > 0 and stop > 0:
            return list(values)
    raise InputError("resume: not a stream position; pass the `position` of the last chunk you received")
