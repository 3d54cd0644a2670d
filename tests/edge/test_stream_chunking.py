"""Chunks of a stream: bounded look-ahead, the same however the stream is cut, each with its place in the document."""

import hashlib
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import regex
from checkpoints import TINY_SEP_ID, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from pplx_edge.text.chunking import block_chars, chunk_stream, chunk_text
from pplx_edge.text.sources import pieces
from pplx_edge.text.structure import LineState, Structure, grapheme_breaks
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import StreamOptions, TextChunk

TOKENIZER = Tokenizer(tiny_tokenizer(), TINY_SEP_ID)
UNITS = [
    "word ",
    "Satz. ",
    "文。",
    "\n",
    "\n\n",
    "# Head\n\n",
    "## Sub\n",
    "```\n",
    "    x\n",
    "e\u0301",
    "👨‍👩‍👧",
    "\r\n",
    "각",
]
# Longer than several blocks, so that chunks lie across their borders.
long_texts = st.tuples(st.lists(st.sampled_from(UNITS), min_size=1, max_size=30), st.integers(1, 400)).map(
    lambda drawn: ("".join(drawn[0]) * drawn[1])[:30_000]
)


def chunks_of(text: str, **options: object) -> list[TextChunk]:
    return list(chunk_stream(pieces(text), TOKENIZER, StreamOptions(**options)))  # type: ignore[arg-type]


def told(chunk: TextChunk) -> tuple[object, ...]:
    return tuple(getattr(chunk, name) for name in chunk.__slots__)


@settings(max_examples=25)
@given(long_texts, st.integers(1, 60))
def test_chunks_and_the_blanks_between_them_are_the_document(text: str, chunk_tokens: int):
    rebuilt, boundaries = "", {0} | {match.end() for match in regex.finditer(r"\X", text)}
    for chunk in chunks_of(text, chunk_tokens=chunk_tokens):
        blanks = text[len(rebuilt) : chunk.start]
        assert not blanks.strip()
        assert {chunk.start, chunk.stop} <= boundaries
        rebuilt += blanks + chunk.text
        assert chunk.text == text[chunk.start : chunk.stop]
        assert chunk.line == 1 + text[: chunk.start].count("\n")
        assert chunk.digest == hashlib.blake2b(text[: chunk.stop].encode(), digest_size=8).hexdigest()
        assert chunk.gap == blanks[-16:]
    assert not text[len(rebuilt) :].strip()


@settings(max_examples=25)
@given(long_texts, st.integers(1, 5000), st.integers(0, 10))
def test_how_the_stream_is_cut_into_pieces_changes_nothing(text: str, size: int, overlap: int):
    options = StreamOptions(chunk_tokens=20, overlap=overlap)
    cut = (text[i : i + size] for i in range(0, len(text), size))
    found = [told(chunk) for chunk in chunk_stream(pieces(cut), TOKENIZER, options)]
    assert found == [told(chunk) for chunk in chunk_stream(pieces(text), TOKENIZER, options)]


@settings(max_examples=20)
@given(long_texts, st.integers(2, 10))
def test_an_overlap_repeats_the_end_of_the_chunk_before(text: str, overlap: int):
    found = chunks_of(text, chunk_tokens=20, overlap=overlap)
    for before, chunk in itertools.pairwise(found):
        assert before.start < chunk.start
        assert before.stop < chunk.stop
        assert not text[before.stop : chunk.start].strip()
        repeated = text[chunk.start : before.stop]
        assert TOKENIZER.count(repeated) <= 2 * overlap + 2  # a word that is cut apart may have more tokens


def test_an_overlap_begins_with_a_sentence():
    found = chunks_of("The fox sleeps. The dog runs. " * 30, chunk_tokens=40, overlap=20)
    assert len(found) > 3
    for before, chunk in itertools.pairwise(found):
        assert chunk.start < before.stop
        assert chunk.text.startswith("The ")


def test_the_look_ahead_is_one_block():
    n_read = 0

    def source() -> Iterator[str]:
        nonlocal n_read
        while True:
            n_read += 10
            yield "word word\n"

    stream = chunk_stream(pieces(source()), TOKENIZER, StreamOptions())
    for chunk, _ in zip(stream, range(300), strict=False):
        assert n_read <= chunk.start + block_chars(128) + 10


@pytest.mark.parametrize(
    "unit",
    [
        "x",
        "\n",
        " \t",
        "字",
        "\u0301",
        "🇩🇪",
        "a ",
        "```\n",
        "# h\n",
        "\0",
        ".",
        "....",
        "\u200d",
        "<|endoftext|>",
        "\r",
    ],
)
def test_endless_text_of_one_kind_is_cut_in_linear_work(unit: str, monkeypatch: pytest.MonkeyPatch):
    n_seen = 0
    offsets = TOKENIZER.offsets

    def counted(text: str):
        nonlocal n_seen
        n_seen += len(text)
        return offsets(text)

    monkeypatch.setattr(TOKENIZER, "offsets", counted)
    text = unit * (50_000 // len(unit))
    found = chunks_of(text)
    assert (
        sum(chunk.stop - chunk.start for chunk in found) >= len(text.replace(" ", "").strip()) * 0.9 or not text.strip()
    )
    assert n_seen <= 2 * len(text)
    assert max((len(chunk.text) for chunk in found), default=0) <= block_chars(128)


def test_headings_lines_and_pages_are_known():
    text = [
        ("# Book\n\n## One\n\nFirst words are here.\n\n", 7),
        ("More words are here now.\n\n## Two\n\n### Deep\n\nLast words.\n\n# End\n\nfin", 8),
    ]
    stream = chunk_stream(pieces(text), TOKENIZER, StreamOptions(chunk_tokens=48))
    found = {chunk.text.split("\n")[-1]: (chunk.line, chunk.page, chunk.heading) for chunk in stream}
    assert found["More words are here now."] == (7, 8, ("Book", "One"))
    assert found["Last words."] == (9, 8, ("Book", "Two", "Deep"))
    assert found["fin"] == (15, 8, ("End",))


def test_headings_are_headings_in_markdown_alone():
    text = "# One\n\nwords " + "and words " * 30
    assert chunks_of(text, chunk_tokens=20)[-1].heading == ("One",)
    assert chunks_of(text, chunk_tokens=20, markup="code")[-1].heading == ()


def test_what_is_in_fenced_code_is_no_heading_blocks_later():
    text = "# Real\n\n```\n" + "# comment\nrun this\n" * 2000 + "```\n\n# After\n\nwords\n"
    found = chunks_of(text)
    assert {chunk.heading for chunk in found[:-1]} == {("Real",)}
    assert found[-1].heading == ("After",)


def test_a_line_that_goes_on_in_the_next_block_is_not_a_heading():
    text = "x" * 8000 + " # no heading " * 1000
    assert {chunk.heading for chunk in chunks_of(text, chunk_tokens=16)} == {()}


def test_a_short_stream_is_cut_as_a_text_is():
    text = "One fox sleeps. " * 400
    assert [(c.start, c.stop) for c in chunk_text(text, TOKENIZER, 16)] == [
        (c.start, c.stop) for c in chunks_of(text, chunk_tokens=16)
    ]


everything = st.text(st.one_of(st.characters(), st.sampled_from("\r\n\u200d\u0301🇩👩क्षि각ᄀ\u0600©")), max_size=60)


@settings(max_examples=300)
@given(everything)
def test_quick_grapheme_breaks_are_those_of_the_rule(text: str):
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    expected = {0} | {match.end() for match in regex.finditer(r"\X", text)}
    assert set(np.flatnonzero(grapheme_breaks(text, codes)).tolist()) == expected


@given(st.lists(st.sampled_from(["# h\n", "```\n", "  x", "word ", "\n", "\n\n"]), max_size=20).map("".join), st.data())
def test_a_structure_that_begins_later_is_the_same(text: str, data: st.DataObject):
    whole = Structure(text, LineState())
    position = data.draw(st.integers(0, len(text)))
    later = Structure(text[position:], whole.state_at(position))
    if position < len(text) and not text[position].isspace():
        assert (later.breaks[1:] == whole.breaks[position + 1 :]).all()
        shifted = [(h.start + position, h.title) for h in later.headings]
        assert shifted == [(h.start, h.title) for h in whole.headings if h.start >= position]
