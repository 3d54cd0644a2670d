"""Streams over chunks that are given, and over documents that the stream cuts itself: float32 means and their cost."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_bench.retrieval.encoders import Encoded
from pplx_bench.streams.counting import counted
from pplx_edge.embedder import Embedder
from pplx_edge.text.batching import collate
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import StreamOptions, TextChunk
from pplx_edge.vectors.late_chunking import ChunkTokens, RunningMean, WindowSizes, plan_windows

_GAP = "\n"  # between two given chunks, where no separator stands there


def streamed_chunks(
    embedder: Embedder, documents: Sequence[str], options: Mapping[str, Any]
) -> tuple[Encoded, list[list[tuple[int, int]]]]:
    """Means of the chunks of every document, in order, and `[start, stop)` of each in its document."""
    embedder, session = counted(embedder)
    means, bounds, started = [], [], time.perf_counter()
    for text in documents:
        vectors = list(embedder.encode_stream(text, "float32", options=StreamOptions(**options)))
        means += [vector.codes for vector in vectors]
        bounds.append([(vector.start, vector.stop) for vector in vectors])
    seconds = time.perf_counter() - started
    return Encoded(np.stack(means), session.n_tokens, 0, session.n_passes, seconds), bounds


def streamed_documents(embedder: Embedder, documents: Sequence[Sequence[str]], options: Mapping[str, Any]) -> Encoded:
    """Means of chunks that are given, from the windows that a stream of exactly these chunks is read in."""
    embedder, session = counted(embedder)
    stream_options = StreamOptions(**options)
    sizes = WindowSizes.of(stream_options, session.spec)
    separates = session.spec.contextual if stream_options.separator is None else stream_options.separator
    sep_id = embedder.tokenizer.sep_id
    means, started = [], time.perf_counter()
    for chunks in documents:
        tokens, running = _tokens(chunks, embedder.tokenizer, separates), RunningMean()
        for window in plan_windows(tokens, sizes, sep_id if separates else None):
            found = session.span_means(collate([window.row], sep_id))
            closed = [running.add(part, mean) for part, mean in zip(window.parts, found, strict=True)]
            means += [mean for mean in closed if mean is not None]
    seconds = time.perf_counter() - started
    return Encoded(np.stack(means), session.n_tokens, 0, session.n_passes, seconds)


def _tokens(chunks: Sequence[str], tokenizer: Tokenizer, separates: bool) -> Iterator[ChunkTokens]:
    """The chunks as a stream hands them to its windows, one after another in a document without headings."""
    position = 0
    for i, text in enumerate(chunks):
        gap = _GAP if i else ""
        start, position = position + len(gap), position + len(gap) + len(text)
        chunk = TextChunk(start, position, text, gap, line=i + 1, page=None, heading=(), digest="")
        (row,) = tokenizer.text_rows([text if separates else gap + text])
        yield ChunkTokens(chunk, row.ids, np.empty(0, np.int64))
