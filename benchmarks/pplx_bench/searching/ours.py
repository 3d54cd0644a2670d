"""The app's own index at scale: how fast it is made, how large it is, how fast and how well it finds."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pplx_bench.searching.made_up import CHUNKS_PER_DOCUMENT, Chunks
from pplx_bench.workdir import directory_bytes
from pplx_edge import ChunkVector
from pplx_search.documents import Document, Piece
from pplx_search.query.kernels import cosines, open_kernel
from pplx_search.query.scanner import Scanner
from pplx_search.settings import fingerprint_of
from pplx_search.store import FileFacts, Filter, Query, Store, text_digest

K = 10
_DOCUMENTS_A_COMMIT = 200
_MADE_UP_SETTINGS = MappingProxyType({"model": "made up"})
_MARKS = {0.5: "a", 0.1: "b", 0.01: "c", 0.001: "d"}  # folders, by the share of documents that they hold
_STRIDE = 389  # has no divisor with 1000 in common
_WARM = 5
Figures = dict[str, Any]
Ask = Callable[[int], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Questions:
    """Queries int8 `[Q, D]`, their words, and the numbers of the `K` chunks that are nearest by exact cosine."""

    codes: np.ndarray
    words: list[str]
    nearest: list[np.ndarray]


def questions(chunks: Chunks, vectors: np.ndarray, count: int) -> Questions:
    """The questions, answered exactly."""
    codes = chunks.queries(count)
    return Questions(codes, chunks.questions(count), [best(row, vectors) for row in codes])


def build(
    chunks: Chunks, vectors: np.ndarray, directory: Path, settings: Mapping[str, Any] = _MADE_UP_SETTINGS
) -> Figures:
    """Makes the index of all chunks through the store's own calls, words and texts included.

    `settings` is what it says that its vectors were made with.
    """
    started = time.perf_counter()
    with Store.open(directory, write=True) as store:
        generation = store.vectors.use(fingerprint_of(dict(settings)), settings, chunks.dim)
        store.collections.add("all")
        scan = store.files.scan(store.collections.add_root("all", b"/made/up").id)
        for first in range(0, chunks.n_documents, _DOCUMENTS_A_COMMIT):
            with store.transaction():
                for number in range(first, min(first + _DOCUMENTS_A_COMMIT, chunks.n_documents)):
                    about = FileFacts(path=_path(number), size=number, mtime_ns=number, inode=number + 1)
                    text, ends = chunks.text(number)
                    document = Document(kind="text", pieces=(Piece(text),))
                    seen = scan.see(about)
                    store.files.begin(seen.file_id)
                    staged = store.files.stage(seen.file_id, document, text_digest(document))
                    embedding = store.vectors.begin(staged.text_id, generation).embedding_id
                    start = number * CHUNKS_PER_DOCUMENT
                    rows = vectors[start : start + CHUNKS_PER_DOCUMENT]
                    store.vectors.append(embedding, list(_chunk_vectors(rows, ends)))
                    store.vectors.complete(embedding)
                    store.files.finish(seen.file_id, about, number.to_bytes(32, "little"))
        seconds = time.perf_counter() - started
        compacting = time.perf_counter()
        store.compact()
        compacting = time.perf_counter() - compacting
        status = store.status()
    text_bytes = status.n_chars
    return {
        "build_seconds": seconds,
        "compact_seconds": compacting,
        "index_bytes": directory_bytes(directory),
        "bits_bytes": status.bits_bytes,
        "text_bytes": text_bytes,
    }


def measure_index(
    directory: Path, asked: Questions, vectors: np.ndarray, threads: int, kernel: str | None
) -> Iterator[Figures]:
    """Times of each kind of query, one after another, and how many of the nearest are found."""
    started = time.perf_counter()
    with Store.open(directory, threads=threads, kernel=kernel) as store:
        store.search(Query(codes=asked.codes[0], k=K))
        yield {"what": "open and first query", "seconds": [time.perf_counter() - started]}

        def dense(index: int) -> list[int]:
            return [hit.chunk_id - 1 for hit in store.search(Query(codes=asked.codes[index], k=K))]

        def words(index: int) -> list[int]:
            return [hit.chunk_id - 1 for hit in store.search(Query(words=asked.words[index], k=K))]

        def both(index: int) -> list[int]:
            query = Query(codes=asked.codes[index], words=asked.words[index], k=K)
            return [hit.chunk_id - 1 for hit in store.search(query)]

        yield {"what": "dense"} | timed(dense, asked, asked.nearest)
        yield {"what": "words"} | timed(words, asked)
        yield {"what": "hybrid"} | timed(both, asked)
        for share in _MARKS:
            yield from _filtered(store, asked, vectors, share)


def timed(ask: Ask, asked: Questions, nearest: Sequence[np.ndarray] | None = None) -> Figures:
    """Seconds of each question, asked once after a few to warm up, and the share of the nearest that is found."""
    for index in range(min(_WARM, len(asked.codes))):
        ask(index)
    seconds, recalls = [], []
    for index in range(len(asked.codes)):
        started = time.perf_counter()
        found = ask(index)
        seconds.append(time.perf_counter() - started)
        if nearest is not None:
            recalls.append(len(set(found) & set(nearest[index].tolist())) / max(1, len(nearest[index])))
    return {"seconds": seconds, "recall": statistics.mean(recalls) if recalls else None}


def _filtered(store: Store, asked: Questions, vectors: np.ndarray, share: float) -> Iterator[Figures]:
    """Queries in a folder that holds a share of the documents."""
    inside = np.flatnonzero(_folders(np.arange(len(vectors)) // CHUNKS_PER_DOCUMENT) == _MARKS[share])
    if not len(inside):
        return
    nearest = [inside[best(row, vectors[inside])] for row in asked.codes]
    wanted = Filter(folders=(f"/made/up/{_MARKS[share]}".encode(),))
    started = time.perf_counter()
    store.search(Query(codes=asked.codes[0], k=K, filter=wanted))
    first = time.perf_counter() - started

    def ask(index: int) -> list[int]:
        return [hit.chunk_id - 1 for hit in store.search(Query(codes=asked.codes[index], k=K, filter=wanted))]

    yield {"what": f"dense, {share:.1%} of documents", "first_seconds": first} | timed(ask, asked, nearest)


def best(query: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Numbers of the `K` rows nearest to a query by exact cosine."""
    return np.argsort(-cosines(open_kernel(), query, rows), kind="stable")[:K]


def scan_figures(bits: np.ndarray, queries: np.ndarray, times: int, threads: int, kernel: str | None) -> Figures:
    """Seconds of the scan alone, of the bits repeated so many times in memory."""
    rows = np.tile(bits, (times, 1))
    scanner = Scanner(open_kernel(kernel), threads)
    seconds = []
    for row in [queries[0], *queries]:
        started = time.perf_counter()
        scanner.nearest(row, rows, 4096, None)
        seconds.append(time.perf_counter() - started)
    return {"what": f"scan of {len(rows):,} rows of bits", "seconds": seconds[1:]}


def _chunk_vectors(rows: np.ndarray, ends: Sequence[int]) -> Iterator[ChunkVector]:
    starts = [0, *ends]
    for index, codes in enumerate(rows):
        yield ChunkVector(index, starts[index], ends[index], codes, index + 1, None, (), 0, str(index))


def _path(number: int) -> bytes:
    return f"/made/up/{_folders(np.array([number]))[0]}/{number % 97}/file-{number}.txt".encode()


def _folders(numbers: np.ndarray) -> np.ndarray:
    """A folder for each document, such that those of `_MARKS` hold their share of all, here and there."""
    places = numbers * _STRIDE % 1000
    return np.array(["d", "c", "b", "a", "e"])[np.searchsorted([1, 11, 111, 611], places, side="right")]
