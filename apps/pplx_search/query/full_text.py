"""Texts and expressions for SQLite's full-text index (FTS5)."""

import re

from pplx_edge.text.lexical import indexable, match_expression

_QUOTED = re.compile(r'"([^"]+)"')


def searchable(text: str) -> str:
    """Return a text for the full-text index: unspaced scripts split into letters, lone surrogates replaced."""
    return without_surrogates(indexable(text))


def without_surrogates(text: str) -> str:
    """Return a text with lone surrogates replaced by `?`, because SQLite does not accept them."""
    return text.encode("utf-8", "replace").decode()


def word_expressions(words: str) -> list[str]:
    """Return an expression for each word of a query; words without a term, such as punctuation, are left out."""
    return [expression for word in words.split() if (expression := match_expression(word))]


def all_words_expression(words: str) -> str:
    """Return an expression that requires every word of a query, or "" if it has none."""
    return " AND ".join(f"({expression})" for expression in word_expressions(words))


def phrase_expression(words: str) -> str:
    """Return an expression that requires the parts in double quotes word for word, or else the whole query.

    Returns "" if there is nothing to require: a single word without quotes is not a phrase.
    """
    texts = _QUOTED.findall(words) or ([words] if len(words.split()) > 1 else [])
    cleaned = (searchable(text).replace('"', " ").replace("\0", " ") for text in texts if match_expression(text))
    return " AND ".join(f'"{text}"' for text in cleaned)
