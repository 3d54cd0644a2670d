"""Encode tables of rows: each row becomes one row that holds the vectors of all its chunks, or the reason for none.

A document stays one row until its chunks are written, so that its chunks are written together or not at all.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from pplx_edge.errors import EdgeError, NumericalError
from pplx_edge.types import ChunkVector, Precision, StreamOptions
from pplx_scale.reading import NO_TEXT, PROBLEM_DETAIL

TOO_LONG, MODEL_FAILED = "too long", "the model failed"
OFFSET = pa.int64()

SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("id", pa.string()),
        ("text", pa.large_string()),  # null unless texts are written with their vectors
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("starts", pa.list_(OFFSET)),
        ("stops", pa.list_(OFFSET)),
        ("lengths", pa.list_(pa.int32())),
        ("codes", pa.large_binary()),
    ]
)


class TextTokenizer(Protocol):
    """The tokenizer of an encoder, as far as a corpus needs it."""

    def text_rows(self, texts: Sequence[str]) -> Sequence[Sized]:
        """Return the tokens of each text."""
        ...


class Encoder(Protocol):
    """The encoder of a corpus: an `Embedder`, or a stand-in with the same methods."""

    fingerprint: str

    @property
    def tokenizer(self) -> TextTokenizer: ...

    @property
    def max_tokens(self) -> int: ...

    def encode(
        self,
        texts: Sequence[str],
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        truncate: bool = False,
        show_progress: bool | None = None,
    ) -> np.ndarray: ...

    def encode_streams(
        self,
        sources: Iterable[Any],
        precision: Precision = "int8",
        *,
        dim: int | None = None,
        options: StreamOptions = ...,
    ) -> Iterator[tuple[int, ChunkVector]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions:
    """Options for encoding rows.

    `late_chunking` None gives each row one vector. `truncate` cuts a row that is longer than the model reads; without
    it, such a row fails. `with_text` writes the text of each chunk next to its vector.
    """

    precision: Precision = "int8"
    dim: int | None = None
    late_chunking: StreamOptions | None = None
    truncate: bool = False
    with_text: bool = False


@dataclass(slots=True)
class _Row:
    """The chunks of one row: offsets in characters, tokens and codes; or the reason why there are none."""

    starts: Sequence[int] = ()
    stops: Sequence[int] = ()
    lengths: Sequence[int] = ()
    codes: bytes = b""
    reason: str | None = None
    detail: str | None = None


def encode_table(encoder: Encoder, table: pa.Table, options: EncodeOptions) -> pa.Table:
    """Return a table of `reading.SCHEMA` as one of SCHEMA, with the same rows in the same order."""
    texts, reasons = table["text"].to_pylist(), table["reason"].to_pylist()
    readable = [i for i, reason in enumerate(reasons) if reason is None]
    encode = _encode_whole if options.late_chunking is None else _encode_chunks
    rows = [
        _Row(reason=reason, detail=detail) for reason, detail in zip(reasons, table["detail"].to_pylist(), strict=True)
    ]
    for i, row in zip(readable, encode(encoder, [texts[i] for i in readable], options), strict=True):
        rows[i] = row
    columns = {
        "key": table["key"],
        "id": table["id"],
        "text": table["text"] if options.with_text else pa.nulls(len(table), pa.large_string()),
    }
    for name in ("reason", "detail", "starts", "stops", "lengths", "codes"):
        columns[name] = pa.array([getattr(row, name) for row in rows], SCHEMA.field(name).type)
    return pa.table(columns, schema=SCHEMA)


def _encode_whole(encoder: Encoder, texts: list[str], options: EncodeOptions) -> list[_Row]:
    """Return one vector for each text; batches within the token budget of the session are made by `encode`."""
    lengths = [len(tokens) for tokens in encoder.tokenizer.text_rows(texts)]
    limit = encoder.max_tokens
    fits = [i for i, length in enumerate(lengths) if options.truncate or length <= limit]
    rows = [_Row(reason=TOO_LONG, detail=f"{length:,} tokens, limit {limit:,}") for length in lengths]
    codes = _codes(encoder, [texts[i] for i in fits], options)
    for i, row_codes in zip(fits, codes, strict=True):
        if isinstance(row_codes, Exception):
            rows[i] = _failed(row_codes)
        else:
            length = min(lengths[i], limit)
            rows[i] = _Row((0,), (len(texts[i]),), (length,), row_codes.tobytes())
    return rows


def _codes(encoder: Encoder, texts: list[str], options: EncodeOptions) -> list[np.ndarray | Exception]:
    """Return the codes of each text, or the error of one that the model cannot encode."""
    if not texts:
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that texts were cut, which the caller has asked for
            return list(
                encoder.encode(
                    texts, options.precision, dim=options.dim, truncate=options.truncate, show_progress=False
                )
            )
    except NumericalError as error:
        if len(texts) == 1:
            return [error]
        half = len(texts) // 2  # few texts of a batch are broken, so that halving finds them with few repetitions
        return _codes(encoder, texts[:half], options) + _codes(encoder, texts[half:], options)


def _encode_chunks(encoder: Encoder, texts: list[str], options: EncodeOptions) -> list[_Row]:
    """Return the chunks of each text, in order; if one fails, the others are encoded one by one."""
    try:
        return _streamed(encoder, texts, options)
    except EdgeError as error:
        if len(texts) == 1:
            return [_failed(error)]
        half = len(texts) // 2
        return _encode_chunks(encoder, texts[:half], options) + _encode_chunks(encoder, texts[half:], options)


def _streamed(encoder: Encoder, texts: list[str], options: EncodeOptions) -> list[_Row]:
    chunks: list[list[ChunkVector]] = [[] for _ in texts]
    assert options.late_chunking is not None
    stream = encoder.encode_streams(texts, options.precision, dim=options.dim, options=options.late_chunking)
    for document, chunk in stream:
        chunks[document].append(chunk)
    return [_of_chunks(found) for found in chunks]


def _of_chunks(chunks: list[ChunkVector]) -> _Row:
    if not chunks:
        return _Row(reason=NO_TEXT, detail="no chunks")
    return _Row(
        [chunk.start for chunk in chunks],
        [chunk.stop for chunk in chunks],
        [chunk.tokens for chunk in chunks],
        b"".join(chunk.codes.tobytes() for chunk in chunks),
    )


def _failed(error: Exception) -> _Row:
    return _Row(reason=MODEL_FAILED, detail=f"{type(error).__name__}: {error}"[:PROBLEM_DETAIL])
