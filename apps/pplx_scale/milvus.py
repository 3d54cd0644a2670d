"""A corpus in Milvus: schemas, files for bulk import, and a collection on a server.

Milvus 2.6 and later has a type for int8 vectors, compares them by cosine without normalizing them first, and indexes
them with HNSW; packed signs are BINARY_VECTOR with Hamming distance. milvus-lite, the version inside a Python process,
has neither type, so there the codes are normalized and stored as float32, which keeps the order of their cosines.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pplx_edge.errors import InputError, MissingExtra
from pplx_edge.vectors.similarity import unit_vectors
from pplx_scale.corpus import Corpus
from pplx_scale.loading import NUMBER, numbered_tables, vectors_of

Kind = Literal["int8", "ubinary", "float32"]
MAX_ID_BYTES = 1024
MAX_TEXT_BYTES = 65_535  # of a VARCHAR
_METRICS = {"int8": "COSINE", "ubinary": "HAMMING", "float32": "COSINE"}
_INDEXES = {"int8": "HNSW", "ubinary": "BIN_IVF_FLAT", "float32": "AUTOINDEX"}
_PARAMETERS: dict[str, dict[str, int]] = {
    "int8": {"M": 16, "efConstruction": 200},
    "ubinary": {"nlist": 1024},
    "float32": {},
}
_INSERT_ROWS = 1000
_BITS = 8


def schema(corpus: Corpus, kind: Kind | None = None) -> Any:
    """Return the schema of a collection for a corpus.

    `kind` is how vectors are stored: None as they are, `float32` normalized. The primary key is the number of a
    vector, which is unique even if the ids of the corpus are not. Raises MissingExtra without pymilvus.
    """
    client, types = _pymilvus()
    kind = _kind_of(corpus, kind)
    made = client.create_schema(auto_id=False, enable_dynamic_field=False)
    made.add_field(NUMBER, types.INT64, is_primary=True)
    made.add_field("key", types.INT64)
    made.add_field("id", types.VARCHAR, max_length=MAX_ID_BYTES)
    made.add_field("chunk", types.INT32)
    made.add_field("start", types.INT64)
    made.add_field("stop", types.INT64)
    made.add_field("tokens", types.INT32)
    if corpus.settings["with_text"]:
        made.add_field("text", types.VARCHAR, max_length=MAX_TEXT_BYTES)
    vector_types = {"int8": types.INT8_VECTOR, "ubinary": types.BINARY_VECTOR, "float32": types.FLOAT_VECTOR}
    made.add_field("vector", vector_types[kind], dim=dim_of(corpus))
    return made


def index_parameters(corpus: Corpus, kind: Kind | None = None) -> Any:
    """Return the parameters of an index for the vectors: their distance, and an index type that takes them."""
    client, _ = _pymilvus()
    kind = _kind_of(corpus, kind)
    parameters = client.prepare_index_params()
    parameters.add_index("vector", index_type=_INDEXES[kind], metric_type=_METRICS[kind], params=_PARAMETERS[kind])
    return parameters


def write_bulk_files(corpus: Corpus, folder: str | Path, *, chunk_bytes: int = 128 << 20) -> list[Path]:
    """Write a corpus as Parquet files for bulk import into Milvus, and return their paths.

    The files are made by `pymilvus.bulk_writer`, for the collection of `schema(corpus)`. Put them where the server
    reads imports from, and start the import with `pymilvus.bulk_writer.bulk_import`. Raises InputError for an id or a
    text that a VARCHAR cannot hold.
    """
    _pymilvus()
    from pymilvus.bulk_writer import BulkFileType, LocalBulkWriter

    Path(folder).mkdir(parents=True, exist_ok=True)
    made = schema(corpus)
    with LocalBulkWriter(made, str(folder), chunk_size=chunk_bytes, file_type=BulkFileType.PARQUET) as writer:
        for row in _rows(corpus, _kind_of(corpus, None)):
            writer.append_row(row)
        writer.commit()
        return [Path(name) for names in writer.batch_files for name in names]


def require_bulk_files(corpus: Corpus, paths: list[Path]) -> int:
    """Return the number of rows in files for bulk import.

    Raises InputError unless the files have the columns that Milvus documents for the types of the schema (a list of
    int8 with `dim` values, or a list of uint8 with a bit per dimension), and exactly the rows of the corpus.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    element = {"int8": pa.int8(), "ubinary": pa.uint8()}[corpus.settings["precision"]]
    expected = {NUMBER: pa.int64(), "key": pa.int64(), "id": pa.string(), "chunk": pa.int32(), "start": pa.int64()}
    expected |= {"stop": pa.int64(), "tokens": pa.int32()}
    expected |= {"text": pa.string()} if corpus.settings["with_text"] else {}
    rows = (
        row
        for table in numbered_tables(corpus)
        for row in zip(*(table[name].to_pylist() for name in expected), vectors_of(table), strict=True)
    )
    n_rows = 0
    for path in paths:
        table = pq.read_table(path)
        for name, kind in expected.items():
            if name not in table.column_names or not _is_kind(table.schema.field(name).type, kind):
                raise InputError(f"{path}: column {name} must be {kind}, found {_found(table, name)}")
        if "vector" not in table.column_names or table.schema.field("vector").type.value_type != element:
            raise InputError(f"{path}: column vector must be a list of {element}, found {_found(table, 'vector')}")
        for row in zip(*(table[name].to_pylist() for name in (*expected, "vector")), strict=True):
            *values, vector = next(rows, (None,) * len(row))
            if tuple(values) != row[:-1] or vector is None or row[-1] != vector.tolist():
                raise InputError(f"{path}: row {n_rows} is not the row of the corpus with that number")
            n_rows += 1
    if next(rows, None) is not None:
        raise InputError(f"{paths}: have {n_rows:,} rows, the corpus has more")
    return n_rows


def insert(corpus: Corpus, client: Any, name: str, kind: Kind | None = None) -> int:
    """Create an indexed collection through a connected `MilvusClient`, insert the corpus, and return the row count.

    With milvus-lite, use the kind `float32`.
    """
    kind = _kind_of(corpus, kind)
    client.create_collection(name, schema=schema(corpus, kind), index_params=index_parameters(corpus, kind))
    n_rows = 0
    block: list[dict[str, Any]] = []
    for row in _rows(corpus, kind):
        block.append({**row, "vector": row["vector"].tobytes() if kind == "ubinary" else row["vector"]})
        if len(block) == _INSERT_ROWS:
            client.insert(name, block)
            n_rows, block = n_rows + len(block), []
    if block:
        client.insert(name, block)
    client.flush(name)
    client.load_collection(name)
    return n_rows + len(block)


def query_vector(codes: np.ndarray, kind: Kind) -> Any:
    """Return a query, int8 codes or packed signs `[D]`, as the type that a collection of a kind is searched with."""
    if kind == "float32":
        return unit_vectors(codes[None])[0]
    return codes.tobytes() if kind == "ubinary" else codes


def dim_of(corpus: Corpus) -> int:
    """Return the number of dimensions of the vectors of a corpus."""
    width = corpus.settings["width"]
    return width * _BITS if corpus.settings["precision"] == "ubinary" else width


def _kind_of(corpus: Corpus, kind: Kind | None) -> Kind:
    precision = corpus.settings["precision"]
    if precision not in ("int8", "ubinary"):
        raise InputError(f"{corpus.location}: has {precision} vectors; Milvus gets int8 or ubinary")
    if kind not in (None, precision) and (precision, kind) != ("int8", "float32"):
        raise InputError(f"{corpus.location}: {precision} vectors cannot be stored as {kind}")
    return kind or precision


def _rows(corpus: Corpus, kind: Kind) -> Iterator[dict[str, Any]]:
    for table in numbered_tables(corpus):
        vectors = vectors_of(table)
        if kind == "float32":
            vectors = unit_vectors(vectors)
        for row, vector in zip(table.drop_columns("vector").to_pylist(), vectors, strict=True):
            _require_length(row, "id", MAX_ID_BYTES)
            _require_length(row, "text", MAX_TEXT_BYTES)
            yield {**row, "vector": vector}


def _require_length(row: dict[str, Any], name: str, limit: int) -> None:
    length = len((row.get(name) or "").encode())
    if length > limit:
        advice = "use shorter ids" if name == "id" else "embed without --with-text, or with --late-chunking"
        raise InputError(f"row {row['key']}: its {name} has {length:,} bytes, Milvus stores {limit:,}; {advice}")


def _is_kind(found: Any, kind: Any) -> bool:
    return str(found).removeprefix("large_") == str(kind)


def _found(table: Any, name: str) -> str:
    return str(table.schema.field(name).type) if name in table.column_names else "none"


def _pymilvus() -> tuple[Any, Any]:
    try:
        from pymilvus import DataType, MilvusClient
    except ModuleNotFoundError as error:
        raise MissingExtra("Milvus", "milvus") from error
    return MilvusClient, DataType
