"""A corpus in LanceDB: embedded in this process, on a disk or on object storage.

LanceDB compares uint8 by Hamming distance and floats by cosine. It stores int8 vectors, but neither searches nor
indexes them (0.40), and none of its distances reads them. So the table holds `bits`, the packed signs, which are
searched and indexed, and `codes`, the int8 vectors as they are, which `hybrid.search` compares exactly. With
`floats=True` it also holds `vector`, the codes as float16, which represents each of them exactly, for searches by
cosine in LanceDB itself; they need not be normalized.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pplx_edge.errors import InputError, MissingExtra
from pplx_scale.corpus import Corpus
from pplx_scale.loading import NUMBER, fixed_lists, numbered_tables, signs_of, vectors_of

_KEPT = (NUMBER, "key", "id", "chunk", "start", "stop", "tokens", "text")
_PRECISIONS = ("int8", "ubinary")
_BATCH_ROWS = 8192
_ROWS_PER_PARTITION = 4096


def _lancedb() -> Any:
    try:
        import lancedb
    except ModuleNotFoundError as error:
        raise MissingExtra("LanceDB", "lance") from error
    return lancedb


@dataclass(slots=True, eq=False)
class LanceCorpus:
    """A corpus in a table of LanceDB; an `Engine` of `hybrid.search` if it has int8 codes.

    `probes` is the number of partitions that a search reads; None reads all, which is exact.
    """

    table: Any
    dim: int
    probes: int | None = None

    @classmethod
    def write(cls, corpus: Corpus, uri: str | Path, name: str = "corpus", *, floats: bool = False) -> "LanceCorpus":
        """Write a corpus of int8 or packed binary vectors into a new table, replacing one of that name."""
        precision = corpus.settings["precision"]
        if precision not in _PRECISIONS:
            raise InputError(f"{corpus.location}: has {precision} vectors; LanceDB gets {' or '.join(_PRECISIONS)}")
        if floats and precision != "int8":
            raise InputError(f"{corpus.location}: has packed signs, which are compared by Hamming distance only")
        tables = _rows(corpus, floats)
        first = next(tables, None)
        if first is None:
            raise InputError(f"{corpus.location}: has no vectors")
        reader = pa.RecordBatchReader.from_batches(first.schema, _batches(first, tables))
        table = _lancedb().connect(str(uri)).create_table(name, data=reader, mode="overwrite")
        return cls(table, _dim(table))

    @classmethod
    def open(cls, uri: str | Path, name: str = "corpus", *, probes: int | None = None) -> "LanceCorpus":
        """Open a table that `write` made."""
        table = _lancedb().connect(str(uri)).open_table(name)
        return cls(table, _dim(table), probes)

    def create_index(self, partitions: int | None = None) -> None:
        """Index the bits by an IVF index with Hamming distance, which keeps them as they are."""
        from lancedb.index import IvfFlat

        n_partitions = partitions or max(1, self.n_vectors // _ROWS_PER_PARTITION)
        self.table.create_index("bits", config=IvfFlat(distance_type="hamming", num_partitions=n_partitions))
        self.table.wait_for_index(["bits_idx"])

    @property
    def n_vectors(self) -> int:
        """See `Engine`."""
        return self.table.count_rows()

    def nearest(self, bits: np.ndarray, count: int, where: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See `Engine`; `where` is a condition in SQL, which is applied before the search."""
        found = self._query(bits, count, where).select([NUMBER, "codes", "_distance"]).to_arrow()
        return np.asarray(found[NUMBER].combine_chunks()), vectors_of(found, "codes")

    def nearest_by_bits(self, bits: np.ndarray, count: int, where: str | None = None) -> list[tuple[int, int]]:
        """Return the number and the Hamming distance of the rows nearest to packed bits, nearest first."""
        found = self._query(bits, count, where).select([NUMBER, "_distance"]).to_arrow()
        distances = (int(distance) for distance in found["_distance"].to_pylist())
        return list(zip(found[NUMBER].to_pylist(), distances, strict=True))

    def codes(self, numbers: Sequence[int], where: str | None = None) -> Mapping[int, np.ndarray]:
        """See `Engine`."""
        condition = f"{NUMBER} IN ({', '.join(map(str, numbers))})"
        if where is not None:
            condition = f"{condition} AND ({where})"
        found = self.table.search().where(condition).select([NUMBER, "codes"]).limit(len(numbers)).to_arrow()
        return dict(zip(found[NUMBER].to_pylist(), vectors_of(found, "codes"), strict=True))

    def rows(self, numbers: Sequence[int], columns: Sequence[str] = ("id", "start", "stop")) -> list[dict[str, Any]]:
        """Return columns of the given rows, in their order."""
        condition = f"{NUMBER} IN ({', '.join(map(str, numbers))})"
        found = self.table.search().where(condition).select([NUMBER, *columns]).limit(len(numbers)).to_list()
        by_number = {row[NUMBER]: row for row in found}
        return [by_number[number] for number in numbers]

    def _query(self, bits: np.ndarray, count: int, where: str | None) -> Any:
        query = self.table.search(bits, vector_column_name="bits").distance_type("hamming").limit(count)
        if where is not None:
            query = query.where(where, prefilter=True)
        return query.nprobes(self.probes) if self.probes is not None else query.bypass_vector_index()


def _dim(table: Any) -> int:
    names = table.schema.names
    return (
        table.schema.field("codes").type.list_size
        if "codes" in names
        else 8 * table.schema.field("bits").type.list_size
    )


def _rows(corpus: Corpus, floats: bool) -> Iterator[pa.Table]:
    for table in numbered_tables(corpus):
        rows = vectors_of(table)
        loaded = table.select([name for name in _KEPT if name in table.schema.names])
        loaded = loaded.append_column("bits", fixed_lists(signs_of(corpus, rows)))
        if corpus.settings["precision"] == "int8":
            loaded = loaded.append_column("codes", fixed_lists(rows))
        if floats:
            loaded = loaded.append_column("vector", fixed_lists(rows.astype(np.float16)))
        yield loaded.replace_schema_metadata(table.schema.metadata)


def _batches(first: pa.Table, others: Iterator[pa.Table]) -> Iterator[pa.RecordBatch]:
    yield from first.to_batches(_BATCH_ROWS)
    for table in others:
        yield from table.cast(first.schema).to_batches(_BATCH_ROWS)
