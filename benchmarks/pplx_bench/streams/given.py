"""Streams over chunks that are given, and over documents that the stream cuts itself: float32 means and their cost."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pplx_bench.quality.encoders import Encoded
from pplx_bench.streams.counting import counted
from pplx_edge.batching import collate
from pplx_edge.embedder import Embedder
from pplx_edge.late_chunking import ChunkTokens, RunningMean, WindowSizes, plan_windows
from pplx_edge.types import StreamOptions, TextChunk


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
    """Means of chunks that are given, as a stream of exactly these chunks makes them."""
    embedder, session = counted(embedder)
    sizes, started = WindowSizes.of(StreamOptions(**options), session.spec), time.perf_counter()
    means = [mean for chunks in documents for mean in _streamed(embedder, chunks, sizes)]
    seconds = time.perf_counter() - started
    return Encoded(np.stack(means), session.n_tokens, 0, session.n_passes, seconds)


def _streamed(embedder: Embedder, chunks: Sequence[str], sizes: WindowSizes) -> Iterator[np.ndarray]:
    """The means of a document's chunks, in order. There are no headings, so its first chunk is what is sticky."""
    sep_id, running = embedder.tokenizer.sep_id, RunningMean()
    tokens = (
        ChunkTokens(TextChunk(0, len(text), text, "", 1, None, (), ""), row.ids, np.empty(0, np.int64))
        for text, row in zip(chunks, embedder.tokenizer.text_rows(chunks), strict=True)
    )
    for window in plan_windows(tokens, sizes, sep_id):
        means = embedder.session.span_means(collate([window.row], sep_id))
        whole = (running.add(part, mean) for part, mean in zip(window.parts, means, strict=True))
        yield from (mean for mean in whole if mean is not None)
