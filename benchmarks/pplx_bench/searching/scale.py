"""The search app's index at scale, on made-up vectors (see `made_up`), beside others."""

import shutil
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pplx_bench import machine, tables
from pplx_bench.options import one_of
from pplx_bench.searching.made_up import Chunks
from pplx_bench.searching.ours import Figures, Questions, build, measure_index, questions, scan_figures
from pplx_bench.searching.peers import PEERS, measure_peer
from pplx_bench.searching.plots import draw_scale
from pplx_bench.workdir import require_free, say
from pplx_kit.options import positive
from pplx_search.query.kernels import signs

_OURS = "pplx-search"
_BYTES_PER_CHUNK = 6.0  # of disk for everything at once, for each dimension


def add_options(group: Any) -> None:
    """The options of this part."""
    group.add_argument("--chunks", type=positive, default=20_000, metavar="N", help="in the index (%(default)s)")
    group.add_argument("--dim", type=positive, default=1024, metavar="D", help="of vectors (%(default)s)")
    group.add_argument("--queries", type=positive, default=50, metavar="N", help="of each kind (%(default)s)")
    group.add_argument("--threads", type=positive, metavar="N", help="of a search; default all cores")
    group.add_argument("--kernel", choices=("numkong", "numpy"), help="default the fastest that is installed")
    group.add_argument(
        "--peers", type=one_of([*PEERS, "none"]), default=list(PEERS), metavar="P,P", help=", ".join([*PEERS, "none"])
    )
    group.add_argument("--scan", type=int, default=10, metavar="N", help="times the bits in a scan alone (%(default)s)")


def draw(results: Sequence[Figures], out: Path) -> None:
    """The picture: see `plots`."""
    draw_scale(results, _OURS, out)


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Our index, then each peer's, then the scan alone."""
    require_free(work, int(args.chunks * args.dim * _BYTES_PER_CHUNK))
    about = {"chunks": args.chunks, "dim": args.dim, "threads": args.threads or machine.n_cores()}
    for figures in _measure(args, work):
        yield about | figures


def _measure(args: Namespace, work: Path) -> Iterator[Figures]:
    chunks = Chunks(args.chunks, args.dim)
    say(f"making {args.chunks:,} vectors")
    vectors = _stored_vectors(chunks, work / "vectors.npy")
    asked = questions(chunks, vectors, args.queries)
    threads = args.threads or machine.n_cores()
    yield from _ours(args, chunks, vectors, asked, work / "ours", threads)
    for name in args.peers:
        if name == "none":
            continue
        directory = work / name
        directory.mkdir()
        say(f"{name}: making and asking")
        for figures in measure_peer(name, chunks, vectors, asked, directory):
            yield {"system": name} | figures
        shutil.rmtree(directory)
    if args.scan:
        bits = np.concatenate([signs(vectors[i : i + 65_536]) for i in range(0, len(vectors), 65_536)])
        queries = signs(asked.codes)
        for n in dict.fromkeys([threads, 1]):
            figures = scan_figures(bits, queries[:20], args.scan, n, args.kernel)
            figures["what"] += f", {n} thread{'s' * (n > 1)}"
            yield {"system": _OURS} | figures


def _ours(
    args: Namespace, chunks: Chunks, vectors: np.ndarray, asked: Questions, directory: Path, threads: int
) -> Iterator[Figures]:
    say(f"{_OURS}: making the index")
    built = build(chunks, vectors, directory)
    yield {"system": _OURS, "what": "build"} | built
    for n in dict.fromkeys([threads, 1]):
        say(f"{_OURS}: asking, {n} threads")
        for figures in measure_index(directory, asked, vectors, n, args.kernel):
            if n == threads or figures["what"] == "dense":
                suffix = "" if n == threads else ", 1 thread"
                yield {"system": _OURS} | figures | {"what": figures["what"] + suffix}
    shutil.rmtree(directory)


def _stored_vectors(chunks: Chunks, path: Path) -> np.ndarray:
    """All vectors, mapped from a file so that they need no memory."""
    stored = np.lib.format.open_memmap(path, "w+", np.int8, (chunks.n, chunks.dim))
    position = 0
    for block in chunks.vectors():
        stored[position : position + len(block)] = block
        position += len(block)
    stored.flush()
    return np.load(path, mmap_mode="r")


def table(results: Sequence[Figures]) -> str:
    """A line a kind of query, and what was asked of how much."""
    lines = []
    for result in results:
        if result["what"] == "skipped":
            lines.append([f"{result['system']}: {result['reason'][:60]}", *[""] * 6])
            continue
        seconds = result.get("seconds")
        p50, p95 = np.percentile(seconds, [50, 95]) if seconds else (None, None)
        first = result.get("first_seconds")
        size, built = result.get("index_bytes"), result.get("build_seconds")
        lines.append(
            [
                f"{result['system']}: {result['what']}",
                *("" if value is None else f"{1000 * value:,.1f}" for value in (p50, p95, first)),
                "" if result.get("recall") is None else f"{result['recall']:.3f}",
                "" if size is None else f"{size / 1e6:,.0f}",
                "" if built is None else f"{built:,.1f}",
            ]
        )
    about = results[0]
    title = f"{about['chunks']:,} chunks of {about['dim']} dimensions, {about['threads']} threads"
    head = ["", "p50 ms", "p95 ms", "first ms", f"recall@{10}", "MB", "build s"]
    return f"{title}\n\n{tables.table(head, lines, label_width=56)}"
