"""In a child of its own: one stream over so much text, its peak of memory, its pace, and when its first vector came."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pplx_bench.child import Send
from pplx_bench.machine import peak_rss, reset_peak_rss, rss
from pplx_bench.streams.books import pieces, read_books
from pplx_bench.streams.counting import Pace, counted
from pplx_bench.timing import CpuWatch

N_PARTS = 10


def stream_once(arguments: Mapping[str, Any], send: Send) -> None:
    """Opens the model, streams `n_characters` of the books, drops the vectors, tells what it took.

    The peak of memory begins anew after opening, so that what opening took cannot hide what streaming takes.
    """
    import pplx_edge
    from pplx_edge.types import StreamOptions

    started = time.perf_counter()
    embedder, session = counted(pplx_edge.load(arguments["model"], **arguments["opening"]))
    opened = {"load_seconds": time.perf_counter() - started, "rss_opened": rss(), "rss_opening": peak_rss()}
    source = pieces(read_books(Path(arguments["books"])), arguments["n_characters"])
    options = StreamOptions(**arguments["options"])
    pace = Pace(arguments["n_tokens"], N_PARTS)
    watch, has_own_peak = CpuWatch(), reset_peak_rss()
    n_chunks = n_tokens = n_passes = rss_first = 0
    first_seconds = seconds = 0.0
    rss_parts: list[int] = []
    started = time.perf_counter()
    for chunk in embedder.encode_stream(source, "int8", options=options):
        if session.n_passes != n_passes and n_chunks:  # this one waited for a window: those before it were a burst
            pace.point(n_tokens, seconds)
        seconds = time.perf_counter() - started
        if not n_chunks:
            first_seconds, rss_first = seconds, peak_rss()
        n_passes = session.n_passes
        n_chunks, n_tokens = n_chunks + 1, n_tokens + chunk.tokens
        if n_tokens * N_PARTS >= arguments["n_tokens"] * (len(rss_parts) + 1):
            rss_parts.append(rss())
    seconds = time.perf_counter() - started
    pace.point(n_tokens, seconds)
    send(
        {
            "kind": "stream",
            "tokens": n_tokens,
            "chunks": n_chunks,
            "tokens_computed": session.n_tokens,
            "passes": session.n_passes,
            "longest_pass": session.longest,
            "seconds": seconds,
            "first_seconds": first_seconds,
            "tokens_per_second": n_tokens / seconds,
            "bursts": pace.n_points,
            "rates": pace.rates(),
            "rss_first": rss_first,
            "rss": peak_rss(),
            "rss_parts": rss_parts,
            "rss_is_of_stream": has_own_peak,
            "others": watch.others(),
        }
        | opened
    )
