"""Chunks cover a text once, in order, within the limit, at the strongest break, and never inside a grapheme."""

import numpy as np
import pytest
import regex
from checkpoints import TINY_SEP_ID, tiny_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from pplx_edge.errors import InputError
from pplx_edge.text.chunking import chunk_text
from pplx_edge.text.tokenization import Tokenizer

TOKENIZER = Tokenizer(tiny_tokenizer(), TINY_SEP_ID)
CLUSTERS = ["👨‍👩‍👧‍👦", "🇩🇪🇫🇷", "e\u0301\u0302", "\u0301", "क्षि", "각", "\r\n", " \u0301", "\u0600 1", "a\u200db"]
PIECES = [
    *CLUSTERS,
    "word",
    "Satz. ",
    "文。",
    "字",
    " ",
    "\n",
    "\n\n",
    "\n\n\n",
    "# Head\n",
    "```\n",
    "\t",
    "    x",
    "\x1c",
    "\u2028",
]

texts = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=120),
    st.lists(st.sampled_from(PIECES), max_size=60).map("".join),
)


def slices(text: str, max_tokens: int) -> list[str]:
    return [text[chunk.start : chunk.stop] for chunk in chunk_text(text, TOKENIZER, max_tokens)]


def tokens_touched(text: str, start: int, stop: int) -> int:
    offsets = np.array(TOKENIZER.encode_with_offsets(text).offsets).reshape(-1, 2)
    starts, stops = np.maximum.accumulate(offsets, axis=0).T
    return int(((starts < stop) & (stops > start)).sum())


@given(texts, st.integers(1, 40))
def test_every_character_that_is_not_blank_is_in_one_chunk_in_order(text: str, max_tokens: int):
    position = 0
    for chunk in chunk_text(text, TOKENIZER, max_tokens):
        assert position <= chunk.start < chunk.stop <= len(text)
        assert not text[position : chunk.start].strip()
        position = chunk.stop
    assert not text[position:].strip()


@given(texts, st.integers(1, 40))
def test_no_chunk_is_cut_inside_a_grapheme(text: str, max_tokens: int):
    boundaries = {0} | {match.end() for match in regex.finditer(r"\X", text)}
    for chunk in chunk_text(text, TOKENIZER, max_tokens):
        assert {chunk.start, chunk.stop} <= boundaries


@given(texts, st.integers(1, 40))
def test_no_chunk_is_over_the_limit_unless_it_is_one_grapheme(text: str, max_tokens: int):
    for chunk in chunk_text(text, TOKENIZER, max_tokens):
        piece = text[chunk.start : chunk.stop]
        assert tokens_touched(text, chunk.start, chunk.stop) <= max_tokens or len(regex.findall(r"\X", piece)) == 1


@given(texts)
def test_chunks_neither_begin_nor_end_blank(text: str):
    for piece in slices(text, 8):
        assert piece.strip()
        for end in (regex.findall(r"\X", piece)[0], regex.findall(r"\X", piece)[-1]):
            assert end.strip()


@pytest.mark.parametrize("text", ["", " ", "\n\n \t\r\n", "\u2003"])
def test_a_blank_text_has_no_chunks(text: str):
    assert chunk_text(text, TOKENIZER) == []


def test_a_short_text_is_one_chunk():
    assert slices("  one line\nand another\n", 128) == ["one line\nand another"]


def test_a_heading_begins_a_chunk_even_when_all_would_fit():
    text = "# Cats\n\nCats sleep all day long, on every chair.\n\n## Dogs\n\nDogs run all day long, in every field.\n"
    assert [piece.split("\n")[0] for piece in slices(text, 90)] == ["# Cats", "## Dogs"]


def test_a_heading_stays_with_what_it_heads():
    text = (
        "A paragraph that comes first and is there to fill.\n\n# Heading\n\nThe text under the heading goes on and on."
    )
    assert slices(text, 40)[1].startswith("# Heading\n\nThe text")


def test_comments_in_fenced_code_are_no_headings():
    text = "Words before the code are here.\n\n```sh\nmake one of them\n# a comment\nmake another of them\n```\n"
    assert len(slices(text, 100)) == 1


def test_paragraphs_come_before_lines_and_lines_before_sentences():
    text = "One line of it. It has two.\nThe second line of it.\n\nThe last paragraph. It is short."
    assert slices(text, 40)[0] == "One line of it. It has two.\nThe second line of it."
    assert slices(text, 24)[0] == "One line of it. It has two."
    assert slices(text, 14)[0] == "One line of it."


def test_functions_of_a_program_stay_whole():
    function = "def {0}(texts):\n    total = len(texts)\n\n    return total + {0}\n"
    text = "\n\n".join(function.format(name) for name in ("first", "second", "third"))
    assert slices(text, 70) == [function.format(name).strip() for name in ("first", "second", "third")]


def test_a_script_without_spaces_is_cut_at_its_own_full_stops():
    text = "機械学習とは何ですか。深層学習は機械学習の一種です。" * 3
    assert all(piece.endswith("。") for piece in slices(text, 40))


def test_an_unbroken_line_is_cut_at_the_limit():
    pieces = slices("x" * 1000, 10)
    assert "".join(pieces) == "x" * 1000
    assert all(len(piece) >= 10 for piece in pieces[:-1])


def test_a_limit_below_one_is_refused():
    with pytest.raises(InputError, match="at least 1"):
        chunk_text("text", TOKENIZER, 0)


def test_the_document_is_tokenized_little_more_than_once(monkeypatch: pytest.MonkeyPatch):
    calls = []
    offsets = TOKENIZER.offsets
    monkeypatch.setattr(TOKENIZER, "offsets", lambda text: calls.append(text) or offsets(text))
    text = "many words here. " * 5000
    assert len(chunk_text(text, TOKENIZER, 16)) > 1000
    assert sum(map(len, calls)) < 1.2 * len(text)
