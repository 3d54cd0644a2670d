"""The files of an embedded corpus, and how encoded rows become the rows of these files.

    vectors/part-*.parquet     one row per vector: key, id, chunk, start, stop, tokens, text (on request), vector
    documents/part-*.parquet   one row per row of the corpus: key, id, status, reason, detail, vectors, tokens

Both are in `data`, and a pair of files with the same name has the same rows of the corpus. The metadata of each
vectors file holds the provenance, under the key `pplx`; that of each documents file also holds its counts.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from pplx_scale.reading import SKIPPED

DATA, VECTORS, DOCUMENTS, CHECKPOINT, RUNS = "data", "vectors", "documents", "checkpoint", "runs"
SETTINGS_FILE, INPUTS_FILE, REPORT_FILE = "settings.json", "inputs.json", "report.json"
EMBEDDED, SKIPPED_STATUS, FAILED = "embedded", "skipped", "failed"
PROVENANCE, COUNTS = b"pplx", b"pplx-counts"
COMPRESSION = "zstd"

_ARROW = {"int8": pa.int8(), "binary": pa.int8(), "ubinary": pa.uint8(), "float32": pa.float32()}
_NUMPY = {"int8": np.int8, "binary": np.int8, "ubinary": np.uint8, "float32": np.float32}

DOCUMENT_SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("id", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("vectors", pa.int32()),
        ("tokens", pa.int64()),
    ]
)


def vector_schema(precision: str, width: int, *, with_text: bool = False) -> pa.Schema:
    """Return the columns of a vectors file. `width` is the number of values of a vector."""
    fields = [("key", pa.int64()), ("id", pa.string()), ("chunk", pa.int32()), ("start", pa.int64())]
    fields += [("stop", pa.int64()), ("tokens", pa.int32())]
    fields += [("text", pa.large_string())] if with_text else []
    return pa.schema([*fields, ("vector", pa.list_(_ARROW[precision], width))])


def vectors_table(encoded: pa.Table, provenance: Mapping[str, Any]) -> pa.Table:
    """Return the chunks of encoded rows, in order, one row each."""
    counts = np.array(encoded["starts"].combine_chunks().value_lengths().fill_null(0))
    n_chunks = int(counts.sum())
    rows = np.repeat(np.arange(len(encoded)), counts)
    schema = vector_schema(provenance["precision"], provenance["width"], with_text=provenance["with_text"])
    first = np.repeat(np.cumsum(counts) - counts, counts)
    codes = b"".join(value for value in encoded["codes"].to_pylist() if value)
    values = np.frombuffer(codes, _NUMPY[provenance["precision"]])
    columns = {
        "key": encoded["key"].take(rows),
        "id": encoded["id"].take(rows),
        "chunk": pa.array(np.arange(n_chunks) - first, pa.int32()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(values), provenance["width"]),
    }
    for name, column in (("start", "starts"), ("stop", "stops"), ("tokens", "lengths")):
        columns[name] = pa.chunked_array([encoded[column].combine_chunks().flatten()], schema.field(name).type)
    if provenance["with_text"]:
        texts = encoded["text"].to_pylist()
        offsets = zip(rows.tolist(), columns["start"].to_pylist(), columns["stop"].to_pylist(), strict=True)
        columns["text"] = pa.array([texts[row][start:stop] for row, start, stop in offsets], pa.large_string())
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    return table.replace_schema_metadata({PROVENANCE: json.dumps(provenance)})


def documents_table(encoded: pa.Table, provenance: Mapping[str, Any]) -> pa.Table:
    """Return what became of each encoded row."""
    lists = encoded["lengths"].to_pylist()
    reasons = encoded["reason"].to_pylist()
    statuses = [EMBEDDED if reason is None else SKIPPED_STATUS if reason in SKIPPED else FAILED for reason in reasons]
    table = pa.table(
        {
            "key": encoded["key"],
            "id": encoded["id"],
            "status": statuses,
            "reason": encoded["reason"],
            "detail": encoded["detail"],
            "vectors": [len(lengths or ()) for lengths in lists],
            "tokens": [sum(lengths or ()) for lengths in lists],
        },
        schema=DOCUMENT_SCHEMA,
    )
    counts = {
        "rows": len(table),
        "vectors": sum(len(lengths or ()) for lengths in lists),
        "tokens": sum(sum(lengths or ()) for lengths in lists),
        "skipped": _by_reason(statuses, reasons, SKIPPED_STATUS),
        "failed": _by_reason(statuses, reasons, FAILED),
    }
    return table.replace_schema_metadata({PROVENANCE: json.dumps(provenance), COUNTS: json.dumps(counts)})


def _by_reason(statuses: list[str], reasons: list[str], status: str) -> dict[str, int]:
    return dict(Counter(reason for each, reason in zip(statuses, reasons, strict=True) if each == status))
