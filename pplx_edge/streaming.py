"""Streams: documents of any length to vectors, window by window, in memory that does not grow with the document."""

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from pplx_edge import quantize
from pplx_edge.batching import collate, plan_batches
from pplx_edge.chunking import ChunkOptions, TextChunk, stream_chunks
from pplx_edge.errors import InputError
from pplx_edge.late_chunking import DEFAULT_WINDOW, ChunkTokens, Window, WindowOptions, plan_windows, window_for_memory
from pplx_edge.sources import Source, pieces
from pplx_edge.spec import ModelSpec
from pplx_edge.tokenization import Tokenizer
from pplx_edge.types import ChunkVector, Precision, Session, StreamOptions, TextFormat

DEFAULT_MARGIN = 256
_MARGIN_SHARE = 8  # of the window, at most, where no margin is asked for
_POOL_TOKENS = 16384  # of many documents that are read together
_HEADING_JOINT = " / "
_CODE_SUFFIXES = frozenset(
    """.c .cc .cpp .cs .css .go .h .hpp .java .js .json .kt .lua .php .pl .py .r .rb .rs .scala .sh .sql .swift .toml
    .ts .tsx .xml .yaml .yml""".split()  # noqa: SIM905  # as a list it would be a page long
)


def window_options(options: StreamOptions, spec: ModelSpec) -> WindowOptions:
    """The sizes of windows for a model. Raises InputError for those that it cannot read or that leave no room."""
    window = options.window
    if options.memory_mb is not None:
        window = window_for_memory(spec, options.memory_mb)
    elif window is None:
        window = min(DEFAULT_WINDOW, spec.max_tokens)
    if window > spec.max_tokens:
        raise InputError(f"a window of {window:,} tokens, the model reads {spec.max_tokens:,} at most")
    margin = min(DEFAULT_MARGIN, window // _MARGIN_SHARE) if options.margin is None else options.margin
    separator = spec.sep_id if options.separator else None
    return WindowOptions(window=window, margin=margin, sticky=options.sticky, separator=separator)


def chunk_options(options: StreamOptions, source: Source) -> ChunkOptions:
    """How a source is cut."""
    format = _format_of(source) if options.format == "auto" else options.format
    return ChunkOptions(max_tokens=options.chunk_tokens, overlap=options.overlap, format=format)


def _format_of(source: Source) -> TextFormat:
    if not isinstance(source, Path):
        return "markdown"
    return "code" if source.suffix.lower() in _CODE_SUFFIXES else "markdown"


@dataclass(frozen=True, slots=True)
class StreamEncoder:
    """A model and what is wanted of it; reads one document, or many together.

    `fingerprint` tells models apart: a stream is resumed only with the one that it was begun with.
    """

    session: Session
    tokenizer: Tokenizer
    precision: Precision
    dim: int
    options: StreamOptions
    fingerprint: bytes

    def encode(self, source: Source, resume: str | None = None) -> Generator[ChunkVector, None, None]:
        """The vectors of one document, those of a window as soon as it was read. Bad options are refused at once."""
        return self._vectors(_Document(self, source, resume))

    def _vectors(self, document: "_Document") -> Generator[ChunkVector, None, None]:
        for window in document.windows():
            yield from document.finished(window, self._means([window])[0])

    def encode_many(self, sources: Iterable[Source]) -> Iterator[tuple[int, ChunkVector]]:
        """The vectors of documents with the documents' numbers, in order; short ones share passes."""
        pending: list[tuple[int, _Document, Window]] = []
        n_tokens = 0
        for number, source in enumerate(sources):
            document = _Document(self, source, None)
            try:
                for window in document.windows():
                    pending.append((number, document, window))
                    n_tokens += len(window.row)
                    if n_tokens >= _POOL_TOKENS:
                        yield from self._flush(pending)
                        pending, n_tokens = [], 0
            except InputError as error:
                yield from self._flush(pending)
                raise InputError(f"source {number}: {error}") from error
        yield from self._flush(pending)

    def _flush(self, pending: list[tuple[int, "_Document", Window]]) -> Iterator[tuple[int, ChunkVector]]:
        means = self._means([window for _, _, window in pending])
        for (number, document, window), found in zip(pending, means, strict=True):
            for vector in document.finished(window, found):
                yield number, vector

    def _means(self, windows: list[Window]) -> list[np.ndarray]:
        """Means `[n, D]` of the spans of each window."""
        rows = [window.row for window in windows]
        found = [np.zeros((len(row.bounds), self.session.spec.dim), np.float32) for row in rows]
        for picked in plan_batches([len(row) for row in rows], self.session.policy):
            means = self.session.span_means(collate([rows[i] for i in picked], self.tokenizer.sep_id))
            parts = np.split(means, np.cumsum([len(rows[i].bounds) for i in picked])[:-1])
            for i, part in zip(picked, parts, strict=True):
                quantize.require_finite(part, [f"chunk {chunk}" for chunk, _ in windows[i].chunks])
                found[i] = part
        return found

    def settings(self, windows: WindowOptions, chunks: ChunkOptions) -> str:
        """A digest of all that decides about codes but the text."""
        said = repr((asdict(windows), asdict(chunks), self.precision, self.dim)).encode()
        return hashlib.blake2b(said + self.fingerprint, digest_size=6).hexdigest()


class _Document:
    """One document on its way: chunks that were read and have no vector yet, and what is known of an open one."""

    def __init__(self, encoder: StreamEncoder, source: Source, resume: str | None):
        self.encoder, self.source = encoder, source
        self.window_options = window_options(encoder.options, encoder.session.spec)
        self.chunk_options = chunk_options(encoder.options, source)
        self.settings = encoder.settings(self.window_options, self.chunk_options)
        self.resume = None if resume is None else _Position.parse(resume)
        if self.resume and self.resume.settings != self.settings:
            raise InputError(
                f"the position {resume} comes from another model or other options; "
                "go on with those that it was made with, or begin anew"
            )
        self.text_hash = hashlib.blake2b(digest_size=8)
        self.waiting: deque[tuple[TextChunk, _Position]] = deque()
        self.sum: np.ndarray | None = None
        self.n_tokens = 0
        self.beginning = np.empty(0, np.int64)

    def windows(self) -> Iterator[Window]:
        """The windows that are to be read."""
        last_known = self.resume.index if self.resume else -1
        n_chunks = 0
        for window in plan_windows(self.tokens(), self.window_options):
            n_chunks = window.chunks[-1][0] + 1
            if any(number > last_known for number, _ in window.chunks):
                yield window
            else:
                self.skip(window)
        if n_chunks <= last_known:
            raise InputError(f"the document has {n_chunks:,} chunks, the position is after {last_known + 1:,} of them")

    def tokens(self) -> Iterator[ChunkTokens]:
        """The chunks' ids; takes note of each chunk, and of its place as a position."""
        tokenizer, stop = self.encoder.tokenizer, 0
        for index, chunk in enumerate(stream_chunks(pieces(self.source), tokenizer, self.chunk_options)):
            new = chunk.text[max(0, stop - chunk.start) :]
            self.text_hash.update(f"{chunk.start} {chunk.stop} ".encode() + new.encode())
            stop = chunk.stop
            position = _Position(index, chunk.stop, self.settings, self.text_hash.copy().hexdigest())
            if self.resume and index == self.resume.index and position != self.resume:
                raise InputError(
                    f"the document is not the one that the position was made with: its first {chunk.stop:,} characters "
                    "differ; begin anew"
                )
            (row,) = tokenizer.text_rows([chunk.text])
            if len(self.beginning) < self.window_options.sticky:
                self.beginning = np.concatenate([self.beginning, row.ids])[: self.window_options.sticky]
            self.waiting.append((chunk, position))
            yield ChunkTokens(row.ids, _Sticky(self, chunk.heading))

    def finished(self, window: Window, means: np.ndarray) -> Iterator[ChunkVector]:
        """The chunks that end in a window, from its means `[n, D]`."""
        ended: list[tuple[TextChunk, _Position, int]] = []
        kept = []
        for (_, ends), (start, stop), mean in zip(window.chunks, window.row.bounds, means, strict=True):
            total, n_tokens = mean * np.float32(stop - start), stop - start
            if self.sum is not None:
                total, n_tokens = self.sum + total, self.n_tokens + n_tokens
                mean = total / np.float32(max(1, n_tokens))
            self.sum, self.n_tokens = (None, 0) if ends else (total, n_tokens)
            if ends:
                ended.append((*self.waiting.popleft(), n_tokens))
                kept.append(mean)
        if not ended:
            return
        dim, precision = self.encoder.dim, self.encoder.precision
        codes = quantize.quantize(quantize.truncate_dims(np.stack(kept), dim), precision)
        for (chunk, position, n_tokens), code in zip(ended, codes, strict=True):
            if self.resume is None or position.index > self.resume.index:
                yield ChunkVector(
                    index=position.index,
                    start=chunk.start,
                    stop=chunk.stop,
                    codes=code,
                    line=chunk.line,
                    page=chunk.page,
                    heading=chunk.heading,
                    tokens=n_tokens,
                    position=str(position),
                )

    def skip(self, window: Window) -> None:
        """Pass over a window whose chunks were all yielded before."""
        for _, ends in window.chunks:
            if ends:
                self.waiting.popleft()


@dataclass(frozen=True, slots=True)
class _Sticky:
    """What is sticky where a chunk begins: the path of headings in up to half of the room, the document's beginning."""

    document: _Document
    heading: tuple[str, ...]

    def __call__(self) -> np.ndarray:
        room = self.document.window_options.sticky
        (row,) = self.document.encoder.tokenizer.text_rows([_HEADING_JOINT.join(self.heading)])
        path = row.ids[: room // 2]
        return np.concatenate([self.document.beginning[: room - len(path)], path])


@dataclass(frozen=True, slots=True)
class _Position:
    """A chunk that was yielded: its number, where it ends, and digests of the settings and of the text so far."""

    index: int
    stop: int
    settings: str
    text: str

    def __str__(self) -> str:
        return f"{self.index}.{self.stop}.{self.settings}.{self.text}"

    @classmethod
    def parse(cls, position: str) -> "_Position":
        try:
            index, stop, settings, text = position.split(".")
            return cls(int(index), int(stop), settings, text)
        except (AttributeError, ValueError):
            raise InputError(f"{position!r} is not a position of a stream; take one from a ChunkVector") from None


async def in_thread(vectors: Generator[ChunkVector, None, None]) -> AsyncIterator[ChunkVector]:
    """The same vectors, computed in a thread of their own, none before it is asked for."""
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, thread_name_prefix="encode_stream")
    try:
        while (vector := await loop.run_in_executor(thread, next, vectors, None)) is not None:
            yield vector
    finally:  # after the step that may still be running, and without waiting for it
        thread.submit(vectors.close)
        thread.shutdown(wait=False)
