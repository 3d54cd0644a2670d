"""Searches in LanceDB among synthetic vectors, filtered and not, next to the scan of the local store.

Both hold the same int8 codes and sign bits. The local store is represented by its scan and its exact rescoring
(`pplx_search.query`), over arrays; `bench search scale` measures the whole store.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pplx_bench import machine
from pplx_bench.search.synthetic import Chunks, K, Questions, nearest_rows, timed
from pplx_bench.workdir import directory_bytes, require_free, say
from pplx_edge.vectors.codes import packed_signs
from pplx_kit.options import positive
from pplx_scale import hybrid, output
from pplx_scale.corpus import Corpus
from pplx_scale.lance import LanceCorpus
from pplx_scale.storage import Place
from pplx_search.query.kernels import asymmetric_scores, cosines, open_kernel, signs
from pplx_search.query.scanner import Scanner

Figures = dict[str, Any]
_FILTERS = {"10.0%": 10, "1.0%": 100}  # share of the vectors, and the divisor of their keys
_ROWS_PER_FILE = 100_000
_DEPTHS = (4096, 512)
_PROBES = (32, 8)
OURS = "local store"


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    group.add_argument("--vectors", type=positive, default=20_000, metavar="N", help="Vectors.")
    group.add_argument("--dim", type=positive, default=512, metavar="D", help="Dimensions.")
    group.add_argument("--queries", type=positive, default=50, metavar="N", help="Queries of each kind.")


def measure(args: Namespace, work: Path) -> Iterator[Figures]:
    """Yield recall and times of each kind of search of each engine."""
    require_free(work, 8 * args.vectors * args.dim)
    chunks = Chunks(args.vectors, args.dim)
    say(f"making {args.vectors:,} vectors")
    vectors = np.concatenate(list(chunks.vectors()))
    queries = chunks.queries(args.queries)
    asked = Questions(queries, [], [nearest_rows(row, vectors) for row in queries])
    subsets = {name: np.arange(0, len(vectors), divisor) for name, divisor in _FILTERS.items()}
    nearest = {name: [rows[nearest_rows(row, vectors[rows])] for row in queries] for name, rows in subsets.items()}
    about = {"vectors": args.vectors, "dim": args.dim}
    for figures in _ours(vectors, asked, subsets, nearest):
        yield {"system": OURS, **about, **figures}
    say("LanceDB: writing")
    corpus = _write(work / "corpus", vectors)
    started = time.perf_counter()
    table = LanceCorpus.write(corpus, work / "lance")
    written = time.perf_counter() - started
    say("LanceDB: indexing")
    started = time.perf_counter()
    table.create_index()
    built = {"write_seconds": written, "index_seconds": time.perf_counter() - started}
    built["bytes"] = directory_bytes(work / "lance")
    for figures in _lance(table, asked, nearest):
        yield {"system": "LanceDB", **about, **built, **figures}


def _ours(vectors: np.ndarray, asked: Questions, subsets: Any, nearest: Any) -> Iterator[Figures]:
    bits = signs(vectors)
    kernel = open_kernel()
    scanner = Scanner(kernel, machine.n_cores())

    def ask(index: int, allowed: np.ndarray | None = None) -> list[int]:
        query = np.ascontiguousarray(asked.codes[index])
        row = signs(query[None])[0]
        if allowed is None:
            slots, _ = scanner.nearest(row, bits, _DEPTHS[0], None)
        else:
            slots, _ = scanner.nearest_of(row, bits, _DEPTHS[0], allowed)
        slots = slots[np.argsort(-asymmetric_scores(kernel, query, bits[slots]), kind="stable")][:512]
        return slots[np.argsort(-cosines(kernel, query, vectors[slots]), kind="stable")[:K]].tolist()

    yield {"what": "bits, 4,096 compared"} | timed(ask, asked, asked.nearest)
    for name, rows in subsets.items():
        yield {"what": f"bits, {name} pass"} | timed(lambda i, rows=rows: ask(i, rows), asked, nearest[name])


def _lance(table: LanceCorpus, asked: Questions, nearest: Any) -> Iterator[Figures]:
    def search(depth: int, where: str | None = None) -> Callable[[int], list[int]]:
        return lambda i: [
            hit.chunk_id - 1 for hit in hybrid.search(table, asked.codes[i], depth=depth, where=where, k=K)
        ]

    yield {"what": "bits, no index, 4,096 compared"} | timed(search(4096), asked, asked.nearest)
    for probes in _PROBES:
        for depth in _DEPTHS:
            table.probes = probes
            what = f"bits, IVF, {probes} probes, {depth:,} compared"
            yield {"what": what} | timed(search(depth), asked, asked.nearest)
    table.probes = None
    for name, divisor in _FILTERS.items():
        found = timed(search(512, f"key % {divisor} = 0"), asked, nearest[name])
        yield {"what": f"bits, no index, {name} pass, 512 compared"} | found
        table.probes = _PROBES[0]
        found = timed(search(512, f"key % {divisor} = 0"), asked, nearest[name])
        yield {"what": f"bits, IVF, {_PROBES[0]} probes, {name} pass, 512 compared"} | found
        table.probes = None


def _write(folder: Path, vectors: np.ndarray) -> Corpus:
    """Write vectors as the files of a finished corpus, and open it."""
    place = Place.of(folder)
    settings = {"precision": "int8", "width": vectors.shape[1], "with_text": False, "fingerprint": "synthetic"}
    (place / output.SETTINGS_FILE).write_json(settings)
    (place / output.REPORT_FILE).write_json({})
    data = folder / output.DATA / output.VECTORS
    data.mkdir(parents=True)
    schema = output.vector_schema("int8", vectors.shape[1])
    for first in range(0, len(vectors), _ROWS_PER_FILE):
        rows = vectors[first : first + _ROWS_PER_FILE]
        keys = np.arange(first, first + len(rows))
        columns = {name: np.zeros(len(rows), np.int64) for name in ("chunk", "start", "stop", "tokens")}
        vector = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        table = pa.table({"key": keys, "id": [f"d{key}" for key in keys], **columns, "vector": vector})
        pq.write_table(table.select(schema.names).cast(schema), data / f"part-{first:010}.parquet")
    assert packed_signs(vectors[:1]).shape[1] * 8 == vectors.shape[1]
    return Corpus.open(folder)
