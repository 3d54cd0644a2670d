"""Reading, encoding and writing a corpus, without Ray: no row is lost, whatever it holds."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pytest.importorskip("pandas")

import pyarrow.parquet as pq
from fakes import FakeSession, fake_embedder
from hypothesis import given
from hypothesis import strategies as st
from stub_encoder import BAD, StubEncoder, hashed

from pplx_edge.errors import InputError
from pplx_edge.types import StreamOptions
from pplx_scale import output
from pplx_scale.encoding import EncodeOptions, encode_table
from pplx_scale.reading import KEY_BITS, InputFile, ReadOptions, list_inputs, read_file
from pplx_scale.report import find_duplicates, read_report
from pplx_scale.storage import Place

LATE = EncodeOptions(late_chunking=StreamOptions())
PROVENANCE = {"precision": "int8", "width": 16, "with_text": False}


def rows_of(path: Path, options: ReadOptions) -> list[dict[str, Any]]:
    """Return all rows of a source."""
    source = Place.of(path)
    return [
        row
        for file in list_inputs(source, [])
        for table in read_file(source, file, options)
        for row in table.to_pylist()
    ]


def test_each_line_becomes_a_row_or_a_reason(write_lines: Callable[..., Path]):
    lines = [
        {"id": "a", "text": "one"},
        {"id": "b", "text": " \n"},
        {"id": "c"},
        {"id": "d", "text": 7},
        '{"id": "e", "text": "cut',
        {"id": 8, "text": "two"},
        {"text": "three"},
        "[1]",
        "",
        {"id": "f", "text": "\ud800"},
    ]
    rows = rows_of(write_lines(lines), ReadOptions(id_field="id"))
    assert [(row["id"], row["text"], row["reason"]) for row in rows] == [
        ("a", "one", None),
        ("b", None, "no text"),
        ("c", None, "no text"),
        ("d", None, "text is not a string"),
        (None, None, "not JSON"),
        ("8", "two", None),
        (None, None, "no id"),
        (None, None, "not JSON"),
        (None, None, "no text"),
        ("f", None, "not UTF-8"),
    ]
    assert [row["key"] for row in rows] == list(range(10))


def test_rows_without_an_id_field_are_named_by_their_place(tmp_path: Path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "b.txt").write_text("one\r\ntwo\n")
    (tmp_path / "in" / "deep" / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n'))
    (tmp_path / "in" / "_hidden.txt").write_text("hidden\n")
    pq.write_table(pa.table({"text": ["four", None]}), tmp_path / "in" / "c.parquet")
    rows = rows_of(tmp_path / "in", ReadOptions())
    assert [(row["id"], row["text"]) for row in rows] == [
        ("b.txt:0", "one"),
        ("b.txt:1", "two"),
        ("c.parquet:0", "four"),
        ("c.parquet:1", None),
        ("deep/a.jsonl.gz:0", "three"),
    ]
    assert [row["key"] >> KEY_BITS for row in rows] == [0, 0, 1, 1, 2]
    [whole] = rows_of(tmp_path / "in" / "b.txt", ReadOptions(whole_files=True))
    assert (whole["id"], whole["text"]) == ("b.txt:0", "one\r\ntwo\n")


def test_sources_that_cannot_be_read_are_refused(tmp_path: Path, write_lines: Callable[..., Path]):
    with pytest.raises(InputError, match="no files there"):
        list_inputs(Place.of(tmp_path / "nothing"), [])
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"can read .parquet.*found picture.png"):
        list_inputs(Place.of(tmp_path), [])
    with pytest.raises(InputError, match="not a location"):
        Place.of("nowhere://x")
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="no column 'text'; the columns are body"):
        rows_of(tmp_path / "c.parquet", ReadOptions())
    (tmp_path / "lines.txt").write_text("x\n")
    with pytest.raises(InputError, match="have no field 'id'"):
        rows_of(tmp_path / "lines.txt", ReadOptions(id_field="id"))


def test_files_keep_their_numbers_and_must_not_change(write_lines: Callable[..., Path]):
    path = write_lines([{"text": "one"}], "in/m.jsonl")
    source = Place.of(path.parent)
    first = list_inputs(source, [])
    write_lines([{"text": "two"}], "in/a.jsonl")
    both = list_inputs(source, first)
    assert [(file.number, file.path) for file in both] == [(0, "m.jsonl"), (1, "a.jsonl")]
    write_lines([{"text": "another"}], "in/m.jsonl")
    with pytest.raises(InputError, match=r"m.jsonl: changed since the first run \(16 bytes, now 20\)"):
        list_inputs(source, both)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=30)), st.integers(1, 7))
def test_tables_of_any_size_hold_the_rows_in_order(texts: list[str], at_once: int):
    import pplx_scale.reading as reading

    source, file = Place.of("/nowhere"), InputFile(3, "x.jsonl", "jsonl", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_ROWS", at_once)
        patch.setattr(reading, "lines_of", lambda *_: iter([json.dumps({"text": text}).encode() for text in texts]))
        tables = list(read_file(source, file, ReadOptions()))
    rows = [row for table in tables for row in table.to_pylist()]
    assert all(len(table) <= at_once for table in tables)
    assert [row["key"] for row in rows] == [(3 << KEY_BITS) + i for i in range(len(texts))]
    assert [row["text"] for row in rows] == [text if text.strip() else None for text in texts]


def encoded(texts: list[str], options: EncodeOptions, encoder: Any = None) -> Any:
    """Return the encoded rows of texts."""
    columns = {"key": range(len(texts)), "id": [f"d{i}" for i in range(len(texts))], "text": texts}
    table = pa.table({**columns, "reason": [None] * len(texts), "detail": [None] * len(texts)})
    table = table.cast(
        pa.schema(
            [
                *[table.schema.field(i) for i in range(2)],
                ("text", pa.large_string()),
                ("reason", pa.string()),
                ("detail", pa.string()),
            ]
        )
    )
    return encode_table(encoder or StubEncoder(), table, options)


def test_one_bad_text_fails_alone():
    texts = ["one", BAD, "two", "word " * 51, "three"]
    table = encoded(texts, EncodeOptions())
    assert table["reason"].to_pylist() == [None, "the model failed", None, "too long", None]
    assert table["detail"].to_pylist()[3] == "51 tokens, limit 50"
    vectors = output.vectors_table(table, PROVENANCE)
    assert vectors["id"].to_pylist() == ["d0", "d2", "d4"]
    assert (np.stack(vectors["vector"].to_numpy()) == [hashed(texts[i], 16) for i in (0, 2, 4)]).all()
    cut = encoded(texts, EncodeOptions(truncate=True))
    assert cut["reason"].to_pylist() == [None, "the model failed", None, None, None]
    assert cut["lengths"].to_pylist()[3] == [50]


def test_one_bad_document_fails_alone_and_chunks_keep_their_order():
    texts = ["a" * 100, BAD, "b" * 10]
    table = encoded(texts, EncodeOptions(late_chunking=StreamOptions(), with_text=True))
    assert table["reason"].to_pylist() == [None, "the model failed", None]
    vectors = output.vectors_table(table, PROVENANCE | {"with_text": True})
    assert [(row["id"], row["chunk"], row["start"], row["stop"], row["text"]) for row in vectors.to_pylist()] == [
        ("d0", 0, 0, 40, "a" * 40),
        ("d0", 1, 40, 80, "a" * 40),
        ("d0", 2, 80, 100, "a" * 20),
        ("d2", 0, 0, 10, "b" * 10),
    ]
    documents = output.documents_table(table, PROVENANCE)
    assert documents["vectors"].to_pylist() == [3, 0, 1]


@pytest.mark.parametrize("precision", ["int8", "binary", "ubinary", "float32"])
@pytest.mark.parametrize("late", [False, True])
def test_vectors_are_those_of_an_embedder(precision: Any, late: bool):
    model = fake_embedder(FakeSession())
    texts = [f"{'some words ' * n} and number {n}. " * 3 for n in range(1, 9)]
    options = StreamOptions(chunk_tokens=16)
    table = encoded(texts, EncodeOptions(precision=precision, late_chunking=options if late else None), model)
    width = len(model.encode([""], precision)[0])
    vectors = output.vectors_table(table, {"precision": precision, "width": width, "with_text": False})
    found = np.stack(vectors["vector"].to_numpy())
    if late:
        chunks = list(model.encode_streams(texts, precision, options=options))
        expected = np.stack([chunk.codes for _, chunk in chunks])
        assert vectors["key"].to_pylist() == [document for document, _ in chunks]
        assert vectors["start"].to_pylist() == [chunk.start for _, chunk in chunks]
    else:
        expected = model.encode(texts, precision)
    assert found.dtype == expected.dtype
    assert (found == expected).all()
    assert vectors.schema.field("vector").type.list_size == width


def write_pair(place: Place, name: str, table: Any) -> None:
    """Write the pair of files of a task."""
    for kind, make in ((output.DOCUMENTS, output.documents_table), (output.VECTORS, output.vectors_table)):
        folder = place / output.DATA / kind
        folder.filesystem.create_dir(folder.path, recursive=True)
        pq.write_table(make(table, PROVENANCE), f"{folder.path}/{name}")


def test_report_counts_what_is_on_disk(tmp_path: Path):
    place = Place.of(tmp_path)
    write_pair(place, "part-0001-0000000000.parquet", encoded(["one two", BAD], EncodeOptions()))
    write_pair(place, "part-0002-0000000000.parquet", encoded(["three"], EncodeOptions()))
    orphan = place / output.DATA / output.DOCUMENTS / "part-0002-0000000001.parquet"  # its vectors were not written
    pq.write_table(output.documents_table(encoded(["four"], EncodeOptions()), PROVENANCE), orphan.path)
    report = read_report(place, run=2)
    assert (report.rows, report.vectors, report.tokens) == (3, 2, 3)
    assert report.failed == {"the model failed": 1}
    assert (report.run_rows, report.run_tokens) == (1, 1)
    assert report.examples[0]["id"] == "d1"
    report.seconds = 2.0
    assert report.summary().startswith("3 rows: 2 embedded, 0 skipped, 1 failed (1 the model failed)")
    assert "d1: the model failed (NumericalError: text 0: the model produced NaN)" in report.summary()


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_duplicate_ids_are_found_with_any_memory(tmp_path: Path, at_once: int):
    place = Place.of(tmp_path)
    for name in ("a", "b"):  # both have ids d0, d1, d2; b has d3 as well
        texts = ["x"] * (3 if name == "a" else 4)
        write_pair(place, f"part-{name}.parquet", encoded(texts, EncodeOptions()))
    n_duplicates, examples = find_duplicates(place, 7, at_once)
    assert n_duplicates == 3
    assert sorted(examples) == ["d0", "d1", "d2"]


def test_no_duplicates_in_unique_ids(tmp_path: Path):
    place = Place.of(tmp_path)
    write_pair(place, "part-a.parquet", encoded(["x", "y"], EncodeOptions()))
    assert find_duplicates(place, 2, 1) == (0, [])
