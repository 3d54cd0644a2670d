"""Texts as they are kept: packed in the shorter way, and the same when they come back."""

import zlib

import pytest

from pplx_search.store.texts import packed, unpacked

PROSE = " ".join(
    f"The {i}th time that the committee met, nobody had read what the mill owner wrote." for i in range(400)
)


@pytest.mark.parametrize("text", ["", "short", "half \ud800 of a character", PROSE, PROSE[:4000], "日本語。" * 3000])
def test_a_text_comes_back_as_it_was(text: str):
    assert unpacked(packed(text)) == text


def test_long_prose_takes_less_than_zlib_makes_of_it_and_short_texts_no_more():
    assert len(packed(PROSE)) < 0.8 * len(zlib.compress(PROSE.encode(), 9))
    assert len(packed(PROSE[:500])) <= len(zlib.compress(PROSE[:500].encode(), 6))


def test_what_zlib_packed_is_read_too():
    assert unpacked(zlib.compress(PROSE.encode())) == PROSE


@pytest.mark.parametrize("data", [b"", b"nonsense", packed(PROSE)[:-9], packed("short")[:-3], b"BZh9nonsense"])
def test_what_is_no_packed_text_is_refused(data: bytes):
    with pytest.raises((zlib.error, OSError, ValueError)):
        unpacked(data)
