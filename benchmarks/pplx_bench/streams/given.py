"""Streams over chunks that are given, and over documents that the stream cuts itself: float32 means and their cost."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pplx_bench.quality.encoders import Encoded
from pplx_bench.streams.counting import counted
from pplx_edge.batching import collate
from pplx_edge.embedder import Embedder
from pplx_edge.late_chunking import ChunkTokens, WindowOptions, plan_windows
from pplx_edge.streaming import window_options
from pplx_edge.types import StreamOptions


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
    sizes, started = window_options(StreamOptions(**options), session.spec), time.perf_counter()
    means = [_streamed_document(embedder, chunks, sizes) for chunks in documents]
    seconds = time.perf_counter() - started
    return Encoded(np.concatenate(means), session.n_tokens, 0, session.n_passes, seconds)


def _streamed_document(embedder: Embedder, chunks: Sequence[str], sizes: WindowOptions) -> np.ndarray:
    """Means `[n, D]` of the chunks of a document. There are no headings, so its beginning is what is sticky."""
    ids = [row.ids for row in embedder.tokenizer.text_rows(chunks)]
    beginning = np.concatenate(ids)[: sizes.sticky]
    sums = np.zeros((len(ids), embedder.session.spec.dim), np.float32)
    for window in plan_windows((ChunkTokens(part, lambda: beginning) for part in ids), sizes):
        means = embedder.session.span_means(collate([window.row], embedder.tokenizer.sep_id))
        for (chunk, _), (start, stop), mean in zip(window.chunks, window.row.bounds, means, strict=True):
            sums[chunk] += mean * np.float32((stop - start) / max(1, len(ids[chunk])))
    return sums
