"""Other stores that search the same vectors, each with its defaults for int8 and cosine, and FTS5 alone for words."""

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from pplx_bench.search.synthetic import Ask, Chunks, Figures, K, Questions, timed
from pplx_bench.workdir import directory_bytes
from pplx_edge.text.lexical import TOKENIZER, match_expression

_COMMIT_ROWS = 10_000


def measure_peer(name: str, chunks: Chunks, vectors: np.ndarray, asked: Questions, directory: Path) -> list[Figures]:
    """Return the build time, size, query times and recall of a peer, or the reason why it cannot run."""
    started = time.perf_counter()
    try:
        ways = PEERS[name](chunks, vectors, asked, directory)
    except (ImportError, sqlite3.Error, apsw.Error) as error:
        return [{"what": "skipped", "reason": f"{type(error).__name__}: {error}".splitlines()[0]}]
    about = {"build_seconds": time.perf_counter() - started, "index_bytes": directory_bytes(directory)}
    nearest = None if name == "fts5" else asked.nearest
    return [about | {"what": what} | timed(ask, asked, nearest) for what, ask in ways.items()]


def _sqlite_vec(chunks: Chunks, vectors: np.ndarray, asked: Questions, directory: Path) -> dict[str, Ask]:
    """Return its exact search, and the one it recommends for more rows: bits, then int8 of the best few."""
    import sqlite_vec

    database = apsw.Connection(
        str(directory / "vectors.sqlite")
    )  # Python's own sqlite3 may be built without extensions
    database.enable_load_extension(True)
    database.load_extension(sqlite_vec.loadable_path())
    database.execute(
        f"CREATE VIRTUAL TABLE v USING vec0(codes int8[{chunks.dim}] distance_metric=cosine, bits bit[{chunks.dim}])"
    )
    insert = "INSERT INTO v(rowid, codes, bits) VALUES (?, vec_int8(?), vec_bit(?))"
    for start in range(0, len(vectors), _COMMIT_ROWS):
        rows = vectors[start : start + _COMMIT_ROWS]
        bits = np.packbits(rows >= 0, axis=1, bitorder="little")
        with database:
            database.executemany(insert, ((start + i, row.tobytes(), bits[i].tobytes()) for i, row in enumerate(rows)))

    def exact(index: int) -> list[int]:
        sql = "SELECT rowid FROM v WHERE codes MATCH vec_int8(?) AND k = ? ORDER BY distance"
        return [row[0] for row in database.execute(sql, (asked.codes[index].tobytes(), K))]

    def by_bits(index: int) -> list[int]:
        query = asked.codes[index]
        sql = (
            "SELECT rowid FROM (SELECT rowid, codes FROM v WHERE bits MATCH vec_bit(?) AND k = ?)"
            " ORDER BY vec_distance_cosine(vec_int8(codes), vec_int8(?)) LIMIT ?"
        )
        bits = np.packbits(query >= 0, bitorder="little").tobytes()
        return [row[0] for row in database.execute(sql, (bits, 512, query.tobytes(), K))]

    return {"exact": exact, "bits, 512 rescored": by_bits}


def _usearch(chunks: Chunks, vectors: np.ndarray, asked: Questions, directory: Path) -> dict[str, Ask]:
    """Return HNSW over int8."""
    from usearch.index import Index

    index = Index(ndim=chunks.dim, metric="cos", dtype="i8")
    index.add(np.arange(len(vectors)), vectors)
    index.save(str(directory / "vectors.usearch"))
    return {"hnsw": lambda i: index.search(asked.codes[i], K).keys.tolist()}


def _lancedb(chunks: Chunks, vectors: np.ndarray, asked: Questions, directory: Path) -> dict[str, Ask]:
    """Return its flat search, and IVF with product quantization and refinement, over float32, as its cosine needs."""
    os.environ.setdefault("LANCE_LOG", "error")
    import lancedb
    import pyarrow

    database: Any = lancedb.connect(str(directory))
    schema = pyarrow.schema([("id", pyarrow.int64()), ("vector", pyarrow.list_(pyarrow.float32(), chunks.dim))])
    table = database.create_table("v", schema=schema)
    for start in range(0, len(vectors), _COMMIT_ROWS):
        rows = vectors[start : start + _COMMIT_ROWS].astype(np.float32)
        column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(rows.ravel()), chunks.dim)
        table.add(pyarrow.table({"id": np.arange(start, start + len(rows)), "vector": column}, schema=schema))

    def nearest(index: int) -> Any:
        return table.search(asked.codes[index].astype(np.float32)).distance_type("cosine").limit(K)

    def flat(index: int) -> list[int]:
        return nearest(index).bypass_vector_index().to_arrow()["id"].to_pylist()

    def by_index(index: int) -> list[int]:
        return nearest(index).nprobes(20).refine_factor(20).to_arrow()["id"].to_pylist()

    table.create_index(metric="cosine")
    return {"flat": flat, "ivf_pq, 20 probes, refined": by_index}


def _fts5(chunks: Chunks, vectors: np.ndarray, asked: Questions, directory: Path) -> dict[str, Ask]:
    """Return a search of words in a plain full-text table that stores its texts."""
    database = sqlite3.connect(directory / "words.sqlite")
    database.execute(f"CREATE VIRTUAL TABLE w USING fts5(text, tokenize='{TOKENIZER}')")
    for number in range(chunks.n_documents):
        text, ends = chunks.text(number)
        starts = [0, *ends]
        database.executemany(
            "INSERT INTO w(text) VALUES (?)", ((text[a:b],) for a, b in zip(starts, ends, strict=False))
        )
    database.commit()

    def ask(index: int) -> list[int]:
        sql = "SELECT rowid FROM w WHERE w MATCH ? ORDER BY rank LIMIT ?"
        return [row[0] - 1 for row in database.execute(sql, (match_expression(asked.words[index]), K))]

    return {"words": ask}


PEERS: dict[str, Callable[[Chunks, np.ndarray, Questions, Path], dict[str, Ask]]] = {
    "sqlite-vec": _sqlite_vec,
    "usearch": _usearch,
    "lancedb": _lancedb,
    "fts5": _fts5,
}
