"""Prepare documents and queries for SQLite's full-text index (FTS5)."""

import itertools

import regex

# The FTS5 tokenizer of the index: words without case and accents, with English stemming.
TOKENIZER = "porter unicode61 remove_diacritics 2"

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LETTER = regex.compile(f"([{_UNSPACED}])")
_TERM = regex.compile(rf"(?P<run>[{_UNSPACED}]+)|[^{_UNSPACED}\s]+")
_WORDY = regex.compile(r"[\p{L}\p{N}\p{Co}]")


def indexable(text: str) -> str:
    """Return the text to index, with spaces around each letter of scripts that are written without spaces."""
    return _LETTER.sub(r" \1 ", text)


def match_expression(question: str) -> str:
    """Return an FTS5 expression that matches documents with any term of a query; empty if the query has no terms."""
    return " OR ".join(match_terms(question))


def match_terms(question: str) -> list[str]:
    """Return the distinct terms of a query as FTS5 expressions.

    Every term is quoted, so a query cannot contain FTS5 syntax. A term with dots, dashes or underscores becomes a
    phrase of its words. Text in scripts written without spaces becomes one phrase for each pair of adjacent letters.
    """
    phrases: dict[str, None] = {}
    for match in _TERM.finditer(question):
        run = match.group("run")
        if run is None:
            found = [match.group()] if _WORDY.search(match.group()) else []
        else:
            found = [f"{a} {b}" for a, b in itertools.pairwise(run)] or [run]
        phrases |= dict.fromkeys('"{}"'.format(phrase.replace('"', '""').replace("\0", " ")) for phrase in found)
    return list(phrases)
