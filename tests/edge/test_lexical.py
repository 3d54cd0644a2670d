"""Questions as full-text expressions, judged by SQLite itself."""

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pplx_edge.text.lexical import TOKENIZER, indexable, match_expression


def matches(text: str, question: str) -> bool:
    database = sqlite3.connect(":memory:")
    database.execute(f"CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize='{TOKENIZER}')")
    database.execute("INSERT INTO words(rowid, text) VALUES (1, ?)", (indexable(text),))
    expression = match_expression(question)
    if not expression:
        return False
    return bool(database.execute("SELECT rowid FROM words WHERE words MATCH ?", (expression,)).fetchall())


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=300)
def test_no_question_is_taken_for_syntax(question: str):
    matches("whatever", question)


@pytest.mark.parametrize(
    "question",
    ['a" OR "b', "NEAR(a b)", "text:a", "a*", "^a", "-a", "a (((", 'a"', "a AND NOT b", "zero\0byte", "col : x"],
)
def test_syntax_is_quoted(question: str):
    assert matches(f"before {question} after", question)


@given(st.text(st.characters(categories=["Lu", "Ll", "Nd"]), min_size=1, max_size=12))
def test_a_word_finds_itself_whatever_its_case(word: str):
    assert matches(f"one {word} two", word)


@pytest.mark.parametrize(
    ("text", "question", "expected"),
    [
        ("resuming a stream", "how is it resumed?", True),
        ("café", "cafe", True),
        ("call encode_stream here", "encode_stream", True),
        ("call stream and encode", "encode_stream", False),
        ("version 1.5.2 of it", "1.5.2", True),
        ("version 2.5.1 of it", "1.5.2", False),
        ("合同将于六月到期", "六月", True),
        ("合同将于六月到期", "月六", False),
        ("合同将于六月到期", "月", True),
        ("請求書の支払期限", "いつ支払期限ですか", True),
        ("model 合同 mixed", "合同", True),
    ],
)
def test_terms(text: str, question: str, expected: bool):
    assert matches(text, question) == expected


@pytest.mark.parametrize("question", ["", " \n", "?! --", "(((", '"', "\0"])
def test_a_question_without_words_has_no_expression(question: str):
    assert match_expression(question) == ""
