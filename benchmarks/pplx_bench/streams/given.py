"""Streams over chunks that are given, and over documents that the stream cuts itself: float32 means and their cost."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pplx_bench.quality.encoders import Encoded
from pplx_bench.streams.counting import counted
from pplx_edge.embedder import Embedder
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
    from pplx_edge.batching import collate

    embedder, session = counted(embedder)
    means, started = [], time.perf_counter()
    for chunks in documents:
        ids = [row.ids for row in embedder.tokenizer.text_rows(chunks)]
        for row in embedder._stub_windows(ids, StreamOptions(**options)):
            means.append(embedder.session.span_means(collate([row], embedder.tokenizer.sep_id)))
    seconds = time.perf_counter() - started
    return Encoded(np.concatenate(means), session.n_tokens, 0, session.n_passes, seconds)
