"""The rows of an embedded corpus as an engine loads them: numbered from 1, with vectors in the engine's types."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pplx_edge.errors import InputError
from pplx_edge.vectors.codes import packed_signs
from pplx_scale.corpus import Corpus

NUMBER = "number"  # the column that identifies a vector: its place among the vectors of the corpus, from 1


def numbered_tables(corpus: Corpus) -> Iterator[pa.Table]:
    """Yield the vectors files with a column `number`, which is unique even if the ids of the corpus are not."""
    first = 1
    for table in corpus.vectors():
        yield table.add_column(0, NUMBER, pa.array(np.arange(first, first + len(table))))
        first += len(table)


def vectors_of(table: pa.Table, column: str = "vector") -> np.ndarray:
    """Return a column of fixed-size lists as an array `[N, D]`."""
    values = table[column].combine_chunks()
    width = table.schema.field(column).type.list_size
    return np.asarray(values.flatten()).reshape(len(table), width)


def fixed_lists(rows: np.ndarray) -> pa.FixedSizeListArray:
    """Return an array `[N, D]` as a column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def signs_of(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """Return the packed signs of the vectors of a corpus, uint8 `[N, D/8]`."""
    if corpus.settings["precision"] == "ubinary":
        return rows
    if rows.shape[1] % 8:
        raise InputError(f"vectors of {rows.shape[1]} dimensions have no whole bytes of signs; use a multiple of 8")
    return packed_signs(rows)
