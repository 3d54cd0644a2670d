"""Words of texts and of questions, in the form in which SQLite's full-text index (FTS5) takes them."""

import itertools

import regex

# What the index makes of a text: words without case and accents, English ones by their stems.
TOKENIZER = "porter unicode61 remove_diacritics 2"

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LETTER = regex.compile(f"([{_UNSPACED}])")
_TERM = regex.compile(rf"(?P<run>[{_UNSPACED}]+)|[^{_UNSPACED}\s]+")
_WORDY = regex.compile(r"[\p{L}\p{N}\p{Co}]")


def indexable(text: str) -> str:
    """The text as it goes into the index: letters of scripts that are written without spaces stand apart."""
    return _LETTER.sub(r" \1 ", text)


def match_expression(question: str) -> str:
    """An FTS5 expression for texts that hold any of a question's terms; empty when the question has none."""
    return " OR ".join(match_terms(question))


def match_terms(question: str) -> list[str]:
    """A question's terms, each once, as FTS5 expressions.

    Every term is quoted, so nothing in a question is taken for syntax. A term with dots, dashes or underscores is a
    phrase of its words; what is written without spaces gives the phrases of neighbouring letters.
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
