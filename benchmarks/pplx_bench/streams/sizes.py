"""`--what size`: memory, pace and first vector of a stream as it grows, beside late chunking of the whole in torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pplx_bench import machine
from pplx_bench.child import ChildFailed, Message, run_task
from pplx_bench.streams.books import characters_for, read_books
from pplx_bench.streams.results import FAILED, Result, Results
from pplx_bench.workdir import fingerprint, say
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer

STREAM, WHOLE, MACRO = "stream", "torch whole", "torch macro"
METHODS = (STREAM, WHOLE, MACRO)
FEW_BURSTS = 40  # fewer windows than this say nothing about how even the pace of ten parts is
FLAT_MEMORY, FLAT_PACE = 1.05, 0.10
# Results of other code are not reused.
STREAM_CODE = (
    "pplx_edge.streaming",
    "pplx_edge.vectors.late_chunking",
    "pplx_edge.text.chunking",
    "pplx_edge.text.structure",
)
WHOLE_CODE = ("pplx_bench.streams.whole", "pplx_edge.text.chunking")
_TIMEOUT_SPARE = 600.0
_STATES_SHARE = 0.4  # of the machine's memory that states of the whole document may take


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRun:
    """What is measured: a model as it is opened and its checkpoint, text, and for how long."""

    label: str
    model: Path
    checkpoint: Path
    model_hash: str
    books: Path
    books_hash: str
    sizes: Sequence[int]
    methods: Sequence[str]
    options: Mapping[str, Any]
    chunk_tokens: int
    macro_window: int
    overlap: int
    threads: int
    opening: Mapping[str, Any]
    limit: float
    logs: Path


def measure_sizes(run: SizeRun, results: Results) -> list[Result]:
    """A result for each method and size, in the order of the sizes."""
    spec = ModelSpec.from_directory(run.model)
    books, tokenizer = read_books(run.books), Tokenizer.open(run.model, spec)
    lengths = {n: characters_for(books, tokenizer, n) for n in run.sizes}
    del books
    found: list[Result] = []
    for method in run.methods:
        seconds_a_token = 0.0
        for n in run.sizes:
            made_of = _made_of(run, method, n)
            result = results.get(
                "size", made_of, lambda n=n, m=method, s=seconds_a_token: _made(run, spec, m, n, lengths[n], s)
            )
            found.append(result)
            if "seconds" in result:
                seconds_a_token = result["seconds"] / result["tokens"]
                say(progress_line(result))
            else:
                say(f"{method}, {n:,} tokens: {result[FAILED]}")
    return found


def evenness(rates: Sequence[float]) -> float:
    """The largest distance of a part's pace from the median, as a share of it."""
    middle = median(rates)
    return max(abs(rate / middle - 1) for rate in rates)


def is_flat(result: Mapping[str, Any]) -> bool | None:
    """Whether a stream kept its memory and its pace; None where it is too short to say."""
    if result["method"] != STREAM or result.get("bursts", 0) < FEW_BURSTS:
        return None
    return result["rss"] <= FLAT_MEMORY * result["rss_first"] and evenness(result["rates"]) <= FLAT_PACE


def progress_line(result: Mapping[str, Any]) -> str:
    """One line for a result, as it comes."""
    return (
        f"{result['label']}, {result['method']}, {result['tokens']:,} tokens: {result['tokens_per_second']:,.0f} a "
        f"second, first vector after {result['first_seconds']:.2f} s, peak {result['rss'] / 1e9:.3f} GB"
    )


def _made_of(run: SizeRun, method: str, n_tokens: int) -> dict[str, Any]:
    about = {
        "label": run.label,
        "method": method,
        "n_tokens": n_tokens,
        "model_hash": run.model_hash,
        "books_hash": run.books_hash,
        "threads": run.threads,
        "chunk_tokens": run.chunk_tokens,
        "code": fingerprint(*(STREAM_CODE if method == STREAM else WHOLE_CODE)),
    }
    if method == STREAM:
        return about | {"options": dict(run.options)}
    return about | ({"window": run.macro_window, "overlap": run.overlap} if method == MACRO else {})


def _made(run: SizeRun, spec: ModelSpec, method: str, n_tokens: int, n_characters: int, pace: float) -> Message:
    if reason := refusal(spec, method, n_tokens, pace, run.limit, machine.memory_bytes()):
        return {"kind": "skipped", FAILED: reason}
    say(f"{run.label}, {method}, {n_tokens:,} tokens" + (f": about {n_tokens * pace:,.0f} s" if pace else ""))
    arguments = {
        "model": str(run.model),
        "checkpoint": str(run.checkpoint),
        "books": str(run.books),
        "n_characters": n_characters,
        "n_tokens": n_tokens,
        "threads": run.threads,
        "opening": dict(run.opening),
        "options": dict(run.options),
        "chunk_tokens": run.chunk_tokens,
        "window": spec.max_tokens + 1 if method == WHOLE else min(run.macro_window, spec.max_tokens),
        "overlap": 0 if method == WHOLE else run.overlap,
    }
    log = run.logs / f"stream-{method.replace(' ', '-')}-{n_tokens}.log"
    task = "stream" if method == STREAM else "whole"
    try:
        (message,) = _child(task, arguments, run.threads, log, 2 * run.limit + _TIMEOUT_SPARE)
    except ChildFailed as error:
        return {"kind": "failed", FAILED: str(error)}
    return message


def _child(task: str, arguments: Mapping[str, Any], threads: int, log: Path, timeout: float) -> Iterator[Message]:
    return run_task(task, arguments, threads, log, timeout)


def refusal(
    spec: ModelSpec, method: str, n_tokens: int, seconds_a_token: float, limit: float, memory_bytes: int
) -> str:
    """Why a size is not tried; empty when it is.

    The whole document in one pass ends at the model's positions; joined windows where states of all tokens, which are
    there twice while they are joined, would fill the memory; either where it would take too long.
    """
    if method == WHOLE and n_tokens > spec.max_tokens:
        return f"the model reads {spec.max_tokens:,} tokens in one pass"
    states = 2 * 4 * spec.dim * n_tokens
    if method != STREAM and states > _STATES_SHARE * memory_bytes:
        return f"token states alone would take {states / 1e9:.1f} GB of {memory_bytes / 1e9:.1f} GB"
    if n_tokens * seconds_a_token > limit:
        return f"about {n_tokens * seconds_a_token:,.0f} s expected, limit {limit:,.0f} s (--limit)"
    return ""
