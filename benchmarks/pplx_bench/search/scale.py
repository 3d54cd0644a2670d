"""The index of pplx-search at scale on synthetic vectors, next to other stores."""

import shutil
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pplx_bench import machine
from pplx_bench.options import one_of
from pplx_bench.search.index import IndexWriter, chunk_vector
from pplx_bench.search.peers import PEERS, measure_peer
from pplx_bench.search.synthetic import (
    CHUNKS_PER_DOCUMENT,
    Chunks,
    Figures,
    K,
    Questions,
    nearest_rows,
    questions,
    timed,
)
from pplx_bench.workdir import directory_bytes, require_free, say
from pplx_kit.options import natural, positive
from pplx_search.query.kernels import open_kernel, signs
from pplx_search.query.scanner import Scanner
from pplx_search.store import FileFacts, Filter, Query, Store

OURS = "pplx-search"
_BYTES_PER_CHUNK = 6.0  # of disk space for everything together, per dimension
_DOCUMENTS_PER_COMMIT = 200
_SYNTHETIC_SETTINGS = MappingProxyType({"model": "synthetic"})
_ROOT = "/synthetic"
_MARKS = {0.5: "a", 0.1: "b", 0.01: "c", 0.001: "d"}  # folders, by the share of documents in each
_STRIDE = 389  # has no common divisor with 1000
_SCAN_K, _SCAN_QUERIES, _ROWS_AT_ONCE = 4096, 20, 65_536


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    add = group.add_argument
    names = [*PEERS, "none"]
    add("--chunks", type=positive, default=20_000, metavar="N", help="Chunks in the index.")
    add("--dim", type=positive, default=1024, metavar="D", help="Dimensions of the vectors.")
    add(
        "--queries",
        type=positive,
        default=50,
        metavar="N",
        help="Queries of each kind: by vectors, by words, by both, and with filters.",
    )
    add("--threads", type=positive, metavar="N", help="Threads of a search (default: all cores).")
    add(
        "--kernel",
        choices=("numkong", "numpy"),
        help="Library that compares vectors: numkong (SIMD) or numpy (default: the fastest installed).",
    )
    add(
        "--peers",
        type=one_of(names),
        default=list(PEERS),
        metavar="P,P",
        help=f"Other stores to compare, if installed: {', '.join(names)} (fts5: words alone).",
    )
    add(
        "--scan",
        type=natural,
        default=10,
        metavar="N",
        help="Also time the scan of an index N times as large, whose sign bits are the same ones repeated; 0 does not.",
    )


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Yield figures of our index, then of each peer, then of the scan of bits by itself."""
    require_free(work, int(args.chunks * args.dim * _BYTES_PER_CHUNK))
    threads = args.threads or machine.n_cores()
    for figures in _measure(args, work, threads):
        yield {"chunks": args.chunks, "dim": args.dim, "threads": threads, "system": OURS} | figures


def _measure(args: Namespace, work: Path, threads: int) -> Iterator[Figures]:
    chunks = Chunks(args.chunks, args.dim)
    say(f"making {args.chunks:,} vectors")
    vectors = _stored_vectors(chunks, work / "vectors.npy")
    asked = questions(chunks, vectors, args.queries)
    both = list(dict.fromkeys([threads, 1]))
    say(f"{OURS}: indexing")
    yield {"what": "build"} | build(chunks, vectors, work / "ours")
    for n in both:
        say(f"{OURS}: querying, {n} threads")
        for figures in measure_index(work / "ours", asked, vectors, n, args.kernel):
            if n == threads or figures["what"] == "dense":
                yield figures | {"what": figures["what"] + ("" if n == threads else ", 1 thread")}
    shutil.rmtree(work / "ours")
    for name in args.peers:
        if name != "none":
            (work / name).mkdir()
            say(f"{name}: indexing and querying")
            for figures in measure_peer(name, chunks, vectors, asked, work / name):
                yield figures | {"system": name}
            shutil.rmtree(work / name)
    if args.scan:
        bits = np.concatenate([signs(vectors[i : i + _ROWS_AT_ONCE]) for i in range(0, len(vectors), _ROWS_AT_ONCE)])
        for n in both:
            figures = _scan(np.tile(bits, (args.scan, 1)), signs(asked.codes[:_SCAN_QUERIES]), n, args.kernel)
            yield figures | {"what": f"{figures['what']}, {n} thread{'s' * (n > 1)}"}


def build(
    chunks: Chunks, vectors: np.ndarray, directory: Path, settings: Mapping[str, Any] = _SYNTHETIC_SETTINGS
) -> Figures:
    """Index all chunks with their texts by the store's own calls, and return the time and size.

    `settings` are recorded as those that the vectors were made with.
    """
    started = time.perf_counter()
    with Store.open(directory, write=True) as store:
        writer = IndexWriter(store, _ROOT.encode(), settings, chunks.dim)
        for first in range(0, chunks.n_documents, _DOCUMENTS_PER_COMMIT):
            with store.transaction():
                for number in range(first, min(first + _DOCUMENTS_PER_COMMIT, chunks.n_documents)):
                    path = f"{_ROOT}/{_folders(np.array([number]))[0]}/{number % 97}/file-{number}.txt".encode()
                    facts = FileFacts(path=path, size=number, mtime_ns=number, inode=number + 1)
                    text, ends = chunks.text(number)
                    rows = vectors[number * CHUNKS_PER_DOCUMENT :][:CHUNKS_PER_DOCUMENT]
                    spans = zip([0, *ends], ends, rows, strict=False)
                    found = [chunk_vector(i, start, stop, row) for i, (start, stop, row) in enumerate(spans)]
                    writer.add(facts, text, found, number.to_bytes(32, "little"), "markdown")
        indexed = time.perf_counter()
        store.compact()
        compacted, status = time.perf_counter(), store.status()
    return {
        "build_seconds": indexed - started,
        "compact_seconds": compacted - indexed,
        "index_bytes": directory_bytes(directory),
        "bits_bytes": status.bits_bytes,
        "text_bytes": status.n_chars,
    }


def measure_index(
    directory: Path, asked: Questions, vectors: np.ndarray, threads: int, kernel: str | None
) -> Iterator[Figures]:
    """Yield the times of each kind of query, one after another, and the recall of dense ones."""
    started = time.perf_counter()
    with Store.open(directory, threads=threads, kernel=kernel) as store:

        def ask(query: Query) -> list[int]:
            return [hit.chunk_id - 1 for hit in store.search(query)]

        ask(Query(codes=asked.codes[0], k=K))
        yield {"what": "open and first query", "seconds": [time.perf_counter() - started]}
        codes, words = asked.codes, asked.words
        yield {"what": "dense"} | timed(lambda i: ask(Query(codes=codes[i], k=K)), asked, asked.nearest)
        yield {"what": "words"} | timed(lambda i: ask(Query(words=words[i], k=K)), asked)
        yield {"what": "hybrid"} | timed(lambda i: ask(Query(codes=codes[i], words=words[i], k=K)), asked)
        folders = _folders(np.arange(len(vectors)) // CHUNKS_PER_DOCUMENT)
        for share, mark in _MARKS.items():
            inside = np.flatnonzero(folders == mark)
            if not len(inside):
                continue
            nearest = [inside[nearest_rows(row, vectors[inside])] for row in codes]
            only = Filter(folders=(f"{_ROOT}/{mark}".encode(),))
            started = time.perf_counter()
            ask(Query(codes=codes[0], k=K, filter=only))
            first = time.perf_counter() - started
            figures = timed(lambda i, only=only: ask(Query(codes=codes[i], k=K, filter=only)), asked, nearest)
            yield {"what": f"dense, {share:.1%} of documents", "first_seconds": first} | figures


def _scan(rows: np.ndarray, queries: np.ndarray, threads: int, kernel: str | None) -> Figures:
    """Return the seconds of a scan of bits in memory, after one to warm up."""
    scanner = Scanner(open_kernel(kernel), threads)
    seconds = []
    for row in [queries[0], *queries]:
        started = time.perf_counter()
        scanner.nearest(row, rows, _SCAN_K, None)
        seconds.append(time.perf_counter() - started)
    return {"what": f"scan of {len(rows):,} rows of bits", "seconds": seconds[1:]}


def _stored_vectors(chunks: Chunks, path: Path) -> np.ndarray:
    """Return all vectors, mapped from a file so that they need no memory."""
    stored = np.lib.format.open_memmap(path, "w+", np.int8, (chunks.n, chunks.dim))
    position = 0
    for block in chunks.vectors():
        stored[position : position + len(block)] = block
        position += len(block)
    stored.flush()
    return np.load(path, mmap_mode="r")


def _folders(numbers: np.ndarray) -> np.ndarray:
    """Return the folder of each document; those of `_MARKS` hold their share of all documents, evenly spread."""
    spread = numbers * _STRIDE % 1000
    return np.array(["d", "c", "b", "a", "e"])[np.searchsorted([1, 11, 111, 611], spread, side="right")]
