"""Compression of texts: the shorter of two formats, and unchanged text after a round trip."""

import zlib

import pytest

from pplx_search.store.texts import packed, unpacked

PROSE = " ".join(
    f"The {i}th time that the committee met, nobody had read what the mill owner wrote." for i in range(400)
)


@pytest.mark.parametrize("text", ["", "short", "half \ud800 of a character", PROSE, PROSE[:4000], "日本語。" * 3000])
def test_a_text_is_unchanged_after_a_round_trip(text: str):
    assert unpacked(packed(text)) == text


def test_long_prose_is_smaller_than_with_zlib_and_short_texts_are_not_larger():
    assert len(packed(PROSE)) < 0.8 * len(zlib.compress(PROSE.encode(), 9))
    assert len(packed(PROSE[:500])) <= len(zlib.compress(PROSE[:500].encode(), 6))


def test_zlib_data_can_be_read():
    assert unpacked(zlib.compress(PROSE.encode())) == PROSE


@pytest.mark.parametrize("data", [b"", b"nonsense", packed(PROSE)[:-9], packed("short")[:-3], b"BZh9nonsense"])
def test_invalid_data_is_refused(data: bytes):
    with pytest.raises((zlib.error, OSError, ValueError)):
        unpacked(data)
