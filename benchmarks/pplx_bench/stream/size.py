"""Memory, pace and time to the first vector of a stream by length, next to late chunking of the whole in torch."""

import time
from argparse import ArgumentTypeError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pplx_bench import machine
from pplx_bench.child import ChildFailed, Message, Send, run_task
from pplx_bench.metering import metered
from pplx_bench.options import list_of, one_of
from pplx_bench.results import FAILED, Result
from pplx_bench.stream.books import characters_for, pieces, read_books
from pplx_bench.stream.setup import STREAM_CODE, Setup
from pplx_bench.timing import CpuWatch
from pplx_bench.workdir import fingerprint, say
from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_kit.options import natural, positive

STREAM, WHOLE, MACRO = METHODS = ("stream", "torch whole", "torch macro")
FEW_BURSTS = 40  # with fewer windows, the pace of ten parts is too noisy to judge
FLAT_MEMORY, FLAT_PACE = 1.05, 0.10
N_PARTS = 10
_WHOLE_CODE = ("pplx_bench.stream.whole", "pplx_edge.text.chunking")
_TIMEOUT_SPARE = 600.0  # seconds
_STATES_SHARE = 0.4  # of the machine's memory that the states of the whole document may take
_UNITS = {"k": 1_000, "m": 1_000_000}


def n_tokens(text: str) -> int:
    """Parse a number of tokens: `500`, `10k` or `1M`, for argparse."""
    unit = _UNITS.get(text[-1:].lower(), 1)
    digits = text[:-1] if unit > 1 else text
    if not (digits.isascii() and digits.isdigit() and int(digits)):
        raise ArgumentTypeError(f"{text!r} is not a number of tokens, such as 500, 10k or 1M")
    return int(digits) * unit


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    add = group.add_argument
    add(
        "--sizes",
        type=list_of(n_tokens),
        default=[10_000, 100_000, 1_000_000],
        metavar="N,N",
        help="Lengths of the document in tokens; k is 1,000 and M 1,000,000 (default: 10k,100k,1M).",
    )
    add(
        "--methods",
        type=one_of(METHODS),
        default=list(METHODS),
        metavar="M,M",
        help="Methods to measure: stream (encode_stream), torch whole (the whole document in one pass) and torch "
        f"macro (long overlapping windows), in quotes (default: '{','.join(METHODS)}').",
    )
    add("--window", type=positive, metavar="N", help="Tokens of a window of encode_stream (default: 4096).")
    add(
        "--margin",
        type=natural,
        metavar="N",
        help="Tokens of context at each end of a window (default: 256, less in windows below 2048 tokens).",
    )
    add("--macro-window", type=positive, default=8192, metavar="N", help="Tokens of a window of torch macro.")
    add("--overlap", type=natural, default=256, metavar="N", help="Overlap of two windows of torch macro, in tokens.")
    add("--limit", type=float, default=1800.0, metavar="S", help="Skip sizes that would take longer than S seconds.")


def measure(setup: Setup) -> list[Result]:
    """Return a result for each method and size, in the order of the sizes."""
    args = setup.args
    if not args.overlap < args.macro_window:
        raise InputError(f"--overlap {args.overlap} is out of range: 0 to {args.macro_window - 1}")
    spec = ModelSpec.from_directory(setup.model)
    books, tokenizer = read_books(setup.books_file), Tokenizer.open(setup.model, spec)
    lengths = {n: characters_for(books, tokenizer, n) for n in args.sizes}
    del books
    found: list[Result] = []
    for method in args.methods:
        pace = 0.0  # seconds per token of the size before
        for n, n_characters in lengths.items():
            made_of = _inputs(setup, method, n)
            result = setup.results.get(
                made_of,
                lambda m=method, n=n, c=n_characters, p=pace: _measured(setup, spec, m, n, c, p),
            )
            found.append(result)
            if "seconds" in result:
                pace = result["seconds"] / result["tokens"]
            say(progress_line(result))
    return found


def passed(results: Sequence[Result]) -> bool:
    """Return True if every stream was measured and none was found not to be flat."""
    return all("seconds" in r and is_flat(r) is not False for r in results if r["method"] == STREAM)


def is_flat(result: Mapping[str, Any]) -> bool | None:
    """Return True if memory and pace of a stream stayed constant, None if it is too short to tell."""
    if result["method"] != STREAM or result.get("bursts", 0) < FEW_BURSTS:
        return None
    return result["rss"] <= FLAT_MEMORY * result["rss_first"] and evenness(result["rates"]) <= FLAT_PACE


def evenness(rates: Sequence[float]) -> float:
    """Return the largest deviation of a part's pace from the median, as a share of the median."""
    middle = median(rates)
    return max(abs(rate / middle - 1) for rate in rates)


def progress_line(result: Mapping[str, Any]) -> str:
    """Return a line about one result."""
    if "seconds" not in result:
        return f"{result['method']}, {result['n_tokens']:,} tokens: {result[FAILED]}"
    return (
        f"{result['label']}, {result['method']}, {result['tokens']:,} tokens: {result['tokens_per_second']:,.0f} per "
        f"second, first vector after {result['first_seconds']:.2f} s, peak {result['rss'] / 1e9:.3f} GB"
    )


def refusal(spec: ModelSpec, method: str, n_tokens: int, pace: float, limit: float, memory_bytes: int) -> str:
    """Return the reason why a size cannot be measured, "" if it can. `pace` is in seconds per token.

    A single pass is limited to the model's positions. Joined windows hold the states of all tokens, twice while they
    are concatenated.
    """
    if method == WHOLE and n_tokens > spec.max_tokens:
        return f"the model reads {spec.max_tokens:,} tokens in one pass"
    states = 2 * 4 * spec.dim * n_tokens
    if method != STREAM and states > _STATES_SHARE * memory_bytes:
        return f"token states alone would take {states / 1e9:.1f} GB of {memory_bytes / 1e9:.1f} GB"
    if n_tokens * pace > limit:
        return f"about {n_tokens * pace:,.0f} s expected, limit {limit:,.0f} s (--limit)"
    return ""


def _stream_options(setup: Setup) -> dict[str, Any]:
    named = {"window": setup.args.window, "margin": setup.args.margin}
    return {name: value for name, value in named.items() if value is not None} | setup.chunk_options


def _inputs(setup: Setup, method: str, n_tokens: int) -> dict[str, Any]:
    args = setup.args
    about = {
        "what": "size",
        "label": setup.label,
        "method": method,
        "n_tokens": n_tokens,
        "model_hash": setup.model_hash,
        "books_hash": setup.books_hash,
        "threads": setup.threads,
        "chunk_tokens": args.chunk_tokens,
        "code": fingerprint(*(STREAM_CODE if method == STREAM else _WHOLE_CODE)),
    }
    if method == STREAM:
        return about | {"options": _stream_options(setup)}
    return about | ({"window": args.macro_window, "overlap": args.overlap} if method == MACRO else {})


def _measured(setup: Setup, spec: ModelSpec, method: str, n_tokens: int, n_characters: int, pace: float) -> Message:
    args = setup.args
    if reason := refusal(spec, method, n_tokens, pace, args.limit, machine.memory_bytes()):
        return {"kind": "skipped", FAILED: reason}
    say(f"{setup.label}, {method}, {n_tokens:,} tokens" + (f": about {n_tokens * pace:,.0f} s" if pace else ""))
    request = {
        "model": str(setup.model),
        "checkpoint": str(setup.checkpoint),
        "books": str(setup.books_file),
        "n_characters": n_characters,
        "n_tokens": n_tokens,
        "threads": setup.threads,
        "opening": setup.opening,
        "options": _stream_options(setup),
        "chunk_tokens": args.chunk_tokens,
        "window": spec.max_tokens + 1 if method == WHOLE else min(args.macro_window, spec.max_tokens),
        "overlap": 0 if method == WHOLE else args.overlap,
    }
    log = setup.work / "logs" / f"stream-{method.replace(' ', '-')}-{n_tokens}.log"
    task = f"{__name__}:stream_once" if method == STREAM else "pplx_bench.stream.whole:late_chunk_once"
    try:
        (message,) = run_task(task, request, setup.threads, log, 2 * args.limit + _TIMEOUT_SPARE)
    except ChildFailed as error:
        return {"kind": "failed", FAILED: str(error)}
    return message


def stream_once(arguments: Mapping[str, Any], send: Send) -> None:
    """In a child: stream `n_characters` of the books, drop the vectors, and send the figures.

    Peak memory is reset after the model is open, so that opening it cannot hide what streaming needs.
    """
    import pplx_edge
    from pplx_edge.types import StreamOptions

    started = time.perf_counter()
    embedder, session = metered(pplx_edge.load(arguments["model"], **arguments["opening"]))
    opened = {
        "load_seconds": time.perf_counter() - started,
        "rss_opened": machine.rss(),
        "rss_opening": machine.peak_rss(),
    }
    source = pieces(read_books(Path(arguments["books"])), arguments["n_characters"])
    pace = Pace(arguments["n_tokens"], N_PARTS)
    watch, has_own_peak = CpuWatch(), machine.reset_peak_rss()
    n_chunks = n_tokens = n_passes = rss_first = 0
    first_seconds = seconds = 0.0
    rss_parts: list[int] = []
    started = time.perf_counter()
    for chunk in embedder.encode_stream(source, "int8", options=StreamOptions(**arguments["options"])):
        if session.n_passes != n_passes and n_chunks:  # this chunk waited for a window: those before it came at once
            pace.point(n_tokens, seconds)
        seconds = time.perf_counter() - started
        if not n_chunks:
            first_seconds, rss_first = seconds, machine.peak_rss()
        n_passes = session.n_passes
        n_chunks, n_tokens = n_chunks + 1, n_tokens + chunk.tokens
        if n_tokens * N_PARTS >= arguments["n_tokens"] * (len(rss_parts) + 1):
            rss_parts.append(machine.rss())
    seconds = time.perf_counter() - started
    pace.point(n_tokens, seconds)
    figures = {
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
        "rss": machine.peak_rss(),
        "rss_parts": rss_parts,
        "rss_is_of_stream": has_own_peak,
        "others": watch.others(),
    }
    send(figures | opened)


@dataclass(slots=True)
class Pace:
    """The time at which each of `n_parts` equal parts of `n_tokens` was done, in constant memory.

    `point` records how much was done at a time. The pace between two points counts as even, because the vectors of a
    window are returned together after the window is computed.
    """

    n_tokens: int
    n_parts: int = 10
    times: list[float] = field(default_factory=list)
    n_points: int = 0
    _tokens: float = 0.0
    _seconds: float = 0.0

    def point(self, tokens: int, seconds: float) -> None:
        """Record the tokens done after some seconds; neither may decrease."""
        while len(self.times) < self.n_parts - 1 and tokens >= (mark := self._mark(len(self.times) + 1)):
            share = (mark - self._tokens) / (tokens - self._tokens)
            self.times.append(self._seconds + share * (seconds - self._seconds))
        self.n_points += 1
        self._tokens, self._seconds = tokens, seconds

    def rates(self) -> list[float]:
        """Return the tokens per second of each part; the last part ends with the last point."""
        times = [0.0, *self.times, self._seconds]
        marks = [*(self._mark(i) for i in range(len(self.times) + 1)), self._tokens]
        spans = [(b - a, d - c) for a, b, c, d in zip(marks, marks[1:], times, times[1:], strict=False)]
        return [tokens / seconds for tokens, seconds in spans if seconds > 0]

    def _mark(self, part: int) -> float:
        return self.n_tokens * part / self.n_parts
