"""Actors on Ray Data against independent processes: the same corpus, as many cores, one session each."""

import time
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from pplx_bench.scale.stubs import texts, write_corpus
from pplx_bench.workdir import say
from pplx_edge.embedder import load
from pplx_kit.options import positive
from pplx_scale.corpus import Corpus, embed_corpus, model_opener
from pplx_scale.workers import Workers

Figures = dict[str, Any]


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    group.add_argument("--model", default="nano", metavar="MODEL", help="Model to encode with.")
    group.add_argument("--backend", default="auto", metavar="NAME", help="Runtime of the model.")
    group.add_argument("--workers", type=positive, default=2, metavar="N", help="Actors, and processes.")
    group.add_argument("--rows", type=positive, default=2000, metavar="N", help="Rows of the corpus.")
    group.add_argument("--words", type=positive, default=150, metavar="N", help="Words of a row, on average.")
    group.add_argument("--block-kb", type=positive, default=64, metavar="KB", help="Text that an actor gets at a time.")


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Yield the tokens per second of both, from the first row to the last, without opening the model."""
    rows = texts(args.rows, args.words)
    model = load(args.model, backend=args.backend)
    n_tokens = sum(len(row) for row in model.tokenizer.text_rows(rows))
    model.close()
    say(f"{args.workers} processes")
    vectors, seconds = _processes(rows, args)
    about = {"workers": args.workers, "rows": len(rows), "tokens": n_tokens, "model": args.model}
    yield {"what": "processes", "seconds": seconds, **about}
    say(f"{args.workers} actors")
    seen: list[tuple[float, int]] = []
    source = write_corpus(work / "in", rows, 4)
    report = embed_corpus(
        source,
        work / "out",
        open_encoder=model_opener(args.model, backend=args.backend, threads=1),
        workers=Workers(least=args.workers, most=args.workers, block_bytes=args.block_kb << 10, rows_per_file=1000),
        on_progress=lambda _, tokens: seen.append((time.perf_counter(), tokens)),
    )
    tables = list(Corpus.open(work / "out").vectors())
    keys = np.concatenate([np.asarray(table["key"]) for table in tables])
    codes = np.concatenate([np.stack(table["vector"].to_numpy()) for table in tables])
    equal = bool((codes[np.argsort(keys)] == vectors).all())
    yield {"what": "actors", "seconds": _busy_seconds(seen, n_tokens), "whole": report.seconds, "equal": equal, **about}


def _busy_seconds(seen: list[tuple[float, int]], n_tokens: int) -> float:
    """Return the seconds for all tokens, at the pace between the first and the last progress that differ."""
    begun = [each for each in seen if each[1] > 0]
    ended = next(each for each in begun if each[1] == begun[-1][1])
    return (ended[0] - begun[0][0]) * n_tokens / (ended[1] - begun[0][1])


def _processes(rows: list[str], args: Namespace) -> tuple[np.ndarray, float]:
    """Encode in independent processes, a share each; returns the codes and the seconds of the slowest."""
    shares = [rows[i :: args.workers] for i in range(args.workers)]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as processes:
        opened = [processes.submit(_open, args.model, args.backend) for _ in shares]
        for each in opened:
            each.result()
        jobs = [processes.submit(_encode, args.model, args.backend, share) for share in shares]
        results = [job.result() for job in jobs]
    codes = np.empty((len(rows), results[0][0].shape[1]), np.int8)
    for i, (found, _) in enumerate(results):
        codes[i :: args.workers] = found
    return codes, max(seconds for _, seconds in results)


def _open(model: str, backend: str) -> None:
    load(model, backend=backend, threads=1).encode(["warm up"])


def _encode(model: str, backend: str, rows: list[str]) -> tuple[np.ndarray, float]:
    opened = load(model, backend=backend, threads=1)
    opened.encode(["warm up"])
    started = time.perf_counter()
    codes = opened.encode(rows, show_progress=False)
    return codes, time.perf_counter() - started
