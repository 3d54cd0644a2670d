"""Every kind of source gives the same text, in short pieces, and says where it is broken after all that is not."""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_edge.errors import InputError
from pplx_edge.text.sources import Piece, pieces

TEXT = "Grüße aus 東京 👨‍👩‍👧\r\n\0\n" * 700
BOM = b"\xef\xbb\xbf"


class Dripping(io.RawIOBase):
    """A binary file that hands out a few bytes at a time."""

    def __init__(self, data: bytes, n_bytes: int):
        self.data, self.n_bytes = data, n_bytes

    def read(self, size: int = -1) -> bytes:
        block, self.data = self.data[: self.n_bytes], self.data[self.n_bytes :]
        return block


def text_of(source: Any) -> str:
    return "".join(piece.text for piece in pieces(source))


def before_error(source: Any) -> tuple[str, Exception | None]:
    found = ""
    try:
        for piece in pieces(source):
            found += piece.text
    except Exception as error:
        return found, error
    return found, None


def test_all_kinds_of_sources_give_the_text(tmp_path: Path):
    path = tmp_path / "text"
    path.write_bytes(TEXT.encode())
    assert text_of(TEXT) == TEXT
    assert text_of(path) == TEXT
    assert text_of(io.BytesIO(TEXT.encode())) == TEXT
    assert text_of(io.StringIO(TEXT, newline="")) == TEXT
    assert text_of(iter(TEXT)) == TEXT
    assert text_of([TEXT[:10], "", TEXT[10:]]) == TEXT
    with path.open(encoding="utf-8", newline="") as file:
        assert text_of(file) == TEXT


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.integers(1, 5))
def test_characters_survive_the_borders_of_what_is_read(text: str, n_bytes: int):
    assert text_of(Dripping(BOM + text.encode(), n_bytes)) == text


def test_pieces_are_short():
    assert max(len(piece.text) for piece in pieces("x" * 100_000)) <= 4096


def test_pages_stay_with_their_text():
    assert list(pieces([("one", 1), ("two", 2), ("three", 2)])) == [Piece("one", 1), Piece("two", 2), Piece("three", 2)]


def test_only_the_first_byte_order_mark_of_bytes_is_dropped():
    assert text_of(io.BytesIO(BOM + b"a" + BOM)) == "a\ufeff"
    assert text_of("\ufeffa") == "\ufeffa"


@pytest.mark.parametrize(
    ("data", "good", "where"),
    [
        (b"\xff", "", "byte 0xff at offset 0"),
        (b"abc\xffdef", "abc", "byte 0xff at offset 3"),
        (b"ab\xe6\x9d", "ab", "byte 0xe6 at offset 2"),
        (BOM + b"ab\xe6\x9dx", "ab", "byte 0xe6 at offset 5"),
        (b"\xed\xa0\x80", "", "byte 0xed at offset 0"),
        (b"x" * 10_000 + b"\x80", "x" * 10_000, "byte 0x80 at offset 10,000"),
    ],
)
@pytest.mark.parametrize("n_bytes", [1, 3, 100_000])
def test_bytes_that_are_not_utf8_are_named_after_the_text_before_them(data: bytes, good: str, where: str, n_bytes: int):
    found, error = before_error(Dripping(data, n_bytes))
    assert found == good
    assert isinstance(error, InputError)
    assert where in str(error)


@pytest.mark.parametrize("source", ["ab\ud800c", ["a", "b\ud800c"], list("ab\ud800c"), io.StringIO("ab\ud800c")])
def test_a_lone_surrogate_is_named_by_its_character(source: Any):
    found, error = before_error(source)
    assert found == "ab"
    assert isinstance(error, InputError)
    assert "lone surrogate at character 2 " in str(error)


def test_what_a_reader_raises_comes_through():
    def reader() -> Iterator[str]:
        yield "one"
        raise KeyError("gone")

    found, error = before_error(reader())
    assert (found, type(error)) == ("one", KeyError)


@pytest.mark.parametrize("source", [b"bytes", 3, None, bytearray(b"x")])
def test_what_is_no_source_is_refused(source: Any):
    with pytest.raises(InputError, match="a stream must be"):
        list(pieces(source))


@pytest.mark.parametrize("items", [[b"x"], [3], [("a", "b")], [("a", 1, 2)], [("a", True)]])
def test_items_that_are_no_text_are_refused(items: Iterable[Any]):
    with pytest.raises(InputError, match="item 0 of the stream"):
        list(pieces(items))


def test_a_file_that_was_opened_here_is_closed_with_the_stream(tmp_path: Path):
    path = tmp_path / "text"
    path.write_text(TEXT, encoding="utf-8")
    stream = pieces(path)
    next(stream)
    stream.close()
    assert list(stream) == []
