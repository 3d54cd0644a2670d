"""Late chunking as published by its authors (arXiv 2409.04701), in torch with the same weights.

Whole: the document in one pass, then the mean of each chunk's token states. Macro: a document longer than the window is
encoded in overlapping windows, the states of an overlap come from the earlier window, and the states of all windows are
concatenated and then pooled (the paper's "long late chunking"). Both hold the states of all tokens of the document.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pplx_bench.child import Send
from pplx_bench.machine import peak_rss, reset_peak_rss
from pplx_bench.speed.peers.stock import load_stock, require_bidirectional
from pplx_bench.stream.books import pieces, read_books
from pplx_bench.timing import CpuWatch
from pplx_edge.spec import ModelSpec
from pplx_edge.text.chunking import chunk_text
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.vectors.codes import quantize


def late_chunk_once(arguments: Mapping[str, Any], send: Send) -> None:
    """In a child: encode `n_characters` of the books as one document, and send the figures."""
    torch.set_num_threads(arguments["threads"])
    checkpoint = Path(arguments["checkpoint"])
    started = time.perf_counter()
    model = load_stock(checkpoint, torch.float32)
    require_bidirectional(model)
    tokenizer = Tokenizer.open(checkpoint, ModelSpec.from_directory(checkpoint))
    load_seconds, opened = time.perf_counter() - started, peak_rss()
    books = read_books(Path(arguments["books"]))
    watch, has_own_peak = CpuWatch(), reset_peak_rss()
    started = time.perf_counter()
    text = "".join(pieces(books, arguments["n_characters"]))
    ids, spans = token_spans(text, tokenizer, arguments["chunk_tokens"])
    read = time.perf_counter()
    states = macro_states(model, torch.from_numpy(ids), arguments["window"], arguments["overlap"])
    codes = quantize(chunk_means(states, spans), "int8")
    seconds = time.perf_counter() - started
    send(
        {
            "kind": "whole",
            "tokens": len(ids),
            "chunks": len(codes),
            "seconds": seconds,
            "first_seconds": seconds,  # all vectors are returned at the end
            "reading_seconds": read - started,
            "tokens_per_second": len(ids) / seconds,
            "rss": peak_rss(),
            "rss_opening": opened,
            "rss_is_of_stream": has_own_peak,
            "load_seconds": load_seconds,
            "others": watch.others(),
        }
    )


def token_spans(text: str, tokenizer: Tokenizer, chunk_tokens: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Return the ids of a text, int64 `[T]`, and the tokens `[start, stop)` that begin in each of its chunks."""
    encoding = tokenizer.encode_with_offsets(text)
    starts = np.maximum.accumulate(np.array(encoding.offsets, np.int64).reshape(-1, 2)[:, 0])
    chunks = chunk_text(text, tokenizer, chunk_tokens)
    spans = [tuple(map(int, np.searchsorted(starts, (chunk.start, chunk.stop)))) for chunk in chunks]
    return np.array(encoding.ids, np.int64), [(start, stop) for start, stop in spans]


def macro_states(model: Any, ids: Tensor, window: int, overlap: int) -> Tensor:
    """Return the states `[T, D]` of ids `[T]`: in one pass if they fit the window, otherwise in overlapping windows."""
    if not 0 <= overlap < window:
        raise ValueError(f"overlap {overlap} is out of range: 0 to {window - 1}")
    found = []
    with torch.inference_mode():
        for start in range(0, max(1, len(ids)), window - overlap):
            part = ids[start : start + window]
            kept = overlap if start else 0
            if len(part) > kept:
                states = model(input_ids=part[None], use_cache=False).last_hidden_state[0]
                found.append(states[kept:].float())
    return torch.cat(found) if found else torch.empty(0, model.config.hidden_size)


def chunk_means(states: Tensor, spans: list[tuple[int, int]]) -> np.ndarray:
    """Return the mean state of each span, float32 `[N, D]`; an empty span gives zeros."""
    means = torch.zeros(len(spans), states.shape[-1])
    for i, (start, stop) in enumerate(spans):
        if stop > start:
            means[i] = states[start:stop].mean(dim=0)
    return means.numpy()
