"""Read a corpus as tables of rows: key, id, text, and the reason why a row has no text.

A row never disappears: one that cannot be read (a broken line, a number in place of the text) has no text and a
problem. The key is the number of the file, in the order in which runs first saw it, and of the row in it. It is unique
whatever the ids of the corpus are, and is what Ray's checkpoints remember.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pplx_edge.errors import InputError
from pplx_scale.storage import Place, lines_of

KEY_BITS = 40  # of the number of a row; the 23 bits above are the number of the file
PROBLEM_DETAIL = 200  # characters of what is wrong with a row that are kept
_ROWS, _CHARACTERS = 1024, 1 << 20  # limits of one table
_PARQUET_ROWS = 256

SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("id", pa.string()),
        ("text", pa.large_string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
BROKEN_LINE, NO_TEXT, NOT_TEXT, BAD_ENCODING, NO_ID = (
    "not JSON",
    "no text",
    "text is not a string",
    "not UTF-8",
    "no id",
)
SKIPPED = {NO_TEXT}  # reasons that are no failures

_KINDS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".text": "text", ".md": "text"}
_COMPRESSIONS = (".gz", ".bz2", ".zst", ".lz4")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """Options for reading rows. `whole_files` makes each text file one row; otherwise each of its lines is one.

    `id_field` None gives each row the id `path:number`, with the number of the row in its file, from 0.
    """

    text_field: str = "text"
    id_field: str | None = None
    whole_files: bool = False


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the corpus: its number, its path below the source, its kind and its size in bytes."""

    number: int
    path: str
    kind: str
    size: int


def list_inputs(source: Place, known: list[InputFile]) -> list[InputFile]:
    """Return the files of a source. Files that an earlier run has seen keep their numbers.

    Raises InputError if there are none, if one has an unknown kind, or if a file has changed since it was first seen,
    because the rows that were embedded could then be others.
    """
    before = {file.path: file for file in known}
    found, unknown = [], []
    for info in source.files():
        path = source.relative(info.path)
        kind = _kind_of(path)
        if kind is None:
            unknown.append(path)
        elif path not in before:
            found.append((path, kind, info.size))
        elif info.size != before[path].size:
            raise InputError(
                f"{path}: changed since the first run ({before[path].size:,} bytes, now {info.size:,}); put new rows "
                "into new files, or embed into a new folder"
            )
    if unknown and not found and not known:
        raise InputError(f"{source}: no corpus; can read {', '.join(_KINDS)}, found {unknown[0]}")
    if not found and not known:
        raise InputError(f"{source}: no files there; can read {', '.join(_KINDS)}")
    first = 1 + max((file.number for file in known), default=-1)
    return known + [InputFile(first + i, *each) for i, each in enumerate(found)]


def read_file(source: Place, file: InputFile, options: ReadOptions) -> Iterator[pa.Table]:
    """Yield the rows of a file as tables of SCHEMA, in order, each of limited size."""
    path = source.path if file.path == source.name and source.is_file() else f"{source.path}/{file.path}"
    rows: list[tuple[Any, Any, str, str]] = []
    n_rows = n_characters = 0
    for row in _READERS[file.kind](source, path, options):
        rows.append(row)
        n_characters += len(row[1] or "")
        if len(rows) >= _ROWS or n_characters >= _CHARACTERS:
            yield _table(file, n_rows, rows, options)
            n_rows, n_characters, rows = n_rows + len(rows), 0, []
    if rows:
        yield _table(file, n_rows, rows, options)


def _kind_of(path: str) -> str | None:
    for compression in _COMPRESSIONS:
        path = path.removesuffix(compression)
    return next((kind for suffix, kind in _KINDS.items() if path.lower().endswith(suffix)), None)


def _table(file: InputFile, first: int, rows: list[tuple[Any, Any, str, str]], options: ReadOptions) -> pa.Table:
    numbers = range(first, first + len(rows))
    ids = [
        f"{file.path}:{number}" if options.id_field is None else row[0]
        for number, row in zip(numbers, rows, strict=True)
    ]
    return pa.table(
        {
            "key": [(file.number << KEY_BITS) + number for number in numbers],
            "id": ids,
            "text": [row[1] for row in rows],
            "reason": [row[2] or None for row in rows],
            "detail": [row[3][:PROBLEM_DETAIL] or None for row in rows],
        },
        schema=SCHEMA,
    )


def _checked(identity: Any, text: Any, wants_id: bool) -> tuple[Any, Any, str, str]:
    """Return a row of `(id, text, reason, detail)`."""
    if identity is not None and not isinstance(identity, str):
        identity = str(identity) if isinstance(identity, int) else json.dumps(identity)
    if wants_id and identity is None:
        return None, None, NO_ID, "the field of the id is missing or null"
    if text is None:
        return identity, None, NO_TEXT, "the field of the text is missing or null"
    if not isinstance(text, str):
        return identity, None, NOT_TEXT, f"{type(text).__name__}: {text!r}"
    if not text.strip():
        return identity, None, NO_TEXT, "empty"
    # A lone surrogate cannot be stored as UTF-8.
    if text.isascii() or _is_unicode(text):
        return identity, text, "", ""
    return identity, None, BAD_ENCODING, "a lone surrogate"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parquet_rows(source: Place, path: str, options: ReadOptions) -> Iterator[tuple[Any, Any, str, str]]:
    wanted = [options.text_field] + ([options.id_field] if options.id_field else [])
    with source.filesystem.open_input_file(path) as file:
        parquet = pq.ParquetFile(file)
        if missing := [name for name in wanted if name not in parquet.schema_arrow.names]:
            names = ", ".join(parquet.schema_arrow.names)
            raise InputError(f"{path}: no column {missing[0]!r}; the columns are {names}")
        for batch in parquet.iter_batches(_PARQUET_ROWS, columns=wanted):
            texts = batch.column(options.text_field).to_pylist()
            ids = batch.column(options.id_field).to_pylist() if options.id_field else [None] * len(texts)
            yield from (_checked(*pair, options.id_field is not None) for pair in zip(ids, texts, strict=True))


def _json_rows(source: Place, path: str, options: ReadOptions) -> Iterator[tuple[Any, Any, str, str]]:
    for line in lines_of(source, path):
        if not line.strip():
            yield None, None, NO_TEXT, "a blank line"
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield None, None, BROKEN_LINE, str(error)
            continue
        if isinstance(value, dict):
            identity = value.get(options.id_field) if options.id_field else None
            yield _checked(identity, value.get(options.text_field), options.id_field is not None)
        else:
            yield None, None, BROKEN_LINE, f"a {type(value).__name__}, not an object"


def _text_rows(source: Place, path: str, options: ReadOptions) -> Iterator[tuple[Any, Any, str, str]]:
    if options.id_field:
        raise InputError(f"{path}: lines of text have no field {options.id_field!r}; leave the id field out")
    if options.whole_files:
        with source.filesystem.open_input_stream(path, compression="detect") as stream:
            yield _decoded(stream.read())
        return
    yield from (_decoded(line) for line in lines_of(source, path))


def _decoded(data: bytes) -> tuple[Any, Any, str, str]:
    try:
        return _checked(None, data.decode("utf-8-sig"), False)
    except UnicodeDecodeError as error:
        return None, None, BAD_ENCODING, str(error)


_READERS = {"parquet": _parquet_rows, "jsonl": _json_rows, "text": _text_rows}
