"""Export passages with their vectors: to Parquet in batches, or to one compressed NumPy file."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge.errors import InputError, MissingExtra
from pplx_search.store import Filter, Store

_BATCH_ROWS = 4096
_EVERYTHING = Filter()
# Columns in addition to the vector. A passage has one row for each document that contains it.
COLUMNS: dict[str, type] = {
    "document": int,
    "path": str,
    "part": str,
    "title": str,
    "kind": str,
    "collection": str,
    "chunk": int,
    "start": int,
    "stop": int,
    "line": int,
    "page": int,
    "heading": str,
    "text": str,
}


def passages(store: Store, wanted: Filter = _EVERYTHING, *, with_text: bool = True) -> Iterator[dict[str, Any]]:
    """Yield a row for each passage of each document: COLUMNS (`text` only if requested) and `vector`, int8 `[D]`.

    `page` is None in documents without pages, and `heading` contains the headings joined by ` > `.
    """
    for document in store.documents(wanted):
        about = {
            "document": document.id,
            "path": os.fsdecode(document.path).encode("utf-8", "replace").decode(),
            "part": document.part,
            "title": document.title,
            "kind": document.kind,
            "collection": document.collection,
        }
        for chunk in store.chunks(document.text_id):
            row = about | {
                "chunk": chunk.index,
                "start": chunk.start,
                "stop": chunk.stop,
                "line": chunk.line,
                "page": chunk.page,
                "heading": " > ".join(chunk.heading),
            }
            if with_text:
                row["text"] = store.read(document.text_id, chunk.start, chunk.stop)
            yield row | {"vector": chunk.codes}


def write_numpy(path: Path, rows: Iterator[dict[str, Any]], dim: int) -> int:
    """Write an `.npz` file: `vectors` int8 `[N, D]` and one array per column; missing pages are -1. Returns N."""
    found = list(rows)
    names = [name for name in COLUMNS if not found or name in found[0]]
    columns: dict[str, np.ndarray] = {}
    for name in names:
        values = [row[name] for row in found]
        if COLUMNS[name] is int:
            columns[name] = np.array([-1 if value is None else value for value in values], np.int64)
        else:
            columns[name] = np.array(values, np.str_)
    vectors = np.array([row["vector"] for row in found], np.int8).reshape(len(found), dim)
    np.savez_compressed(path, vectors=vectors, **columns)  # type: ignore[arg-type]
    return len(found)


def write_parquet(path: Path, rows: Iterator[dict[str, Any]], dim: int) -> int:
    """Write Parquet in batches, with `vector` as a list of D int8. Returns N. Raises MissingExtra without pyarrow."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("export to Parquet (pyarrow)", "export") from error
    kinds = {int: pa.int64(), str: pa.string()}
    first = next(rows, None)
    names = [name for name in COLUMNS if first is None or name in first]
    schema = pa.schema([(name, kinds[COLUMNS[name]]) for name in names] + [("vector", pa.list_(pa.int8(), dim))])
    n_rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        batch = [] if first is None else [first]
        for row in rows:
            if len(batch) == _BATCH_ROWS:
                writer.write_table(_table(pa, schema, batch))
                n_rows, batch = n_rows + len(batch), []
            batch.append(row)
        writer.write_table(_table(pa, schema, batch))
    return n_rows + len(batch)


def _table(pa: Any, schema: Any, rows: list[dict[str, Any]]) -> Any:
    columns = {name: [row[name] for row in rows] for name in schema.names if name != "vector"}
    columns["vector"] = [row["vector"].tolist() for row in rows]
    return pa.table(columns, schema=schema)


WRITERS = {".npz": write_numpy, ".parquet": write_parquet}


def writer_for(path: Path) -> Any:
    """Return the writer for a file name. Raises InputError, listing the supported formats, if there is none."""
    if path.suffix not in WRITERS:
        raise InputError(f"{path}: export writes {' and '.join(WRITERS)}")
    return WRITERS[path.suffix]
