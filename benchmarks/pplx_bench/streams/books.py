"""Real long text: whole books, one after another and again from the first, to any length; and sections of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from pplx_bench.retrieval.beir import json_rows
from pplx_edge.errors import InputError
from pplx_edge.text.tokenization import Tokenizer

FILES = ("longdocs.jsonl.gz", "longdocs.jsonl")
PIECE_CHARACTERS = 1 << 16
_BETWEEN = "\n\n"  # two books


@dataclass(frozen=True, slots=True)
class Book:
    """One long document."""

    id: str
    title: str
    lang: str
    text: str

    @property
    def titled(self) -> str:
        """The text under its title as a heading."""
        return f"# {self.title}\n\n{self.text}"


def books_file(path: Path) -> Path:
    """The file of long documents: the path itself, or in it. Raises InputError when there is none."""
    for candidate in (path, *(path / name for name in FILES)):
        if candidate.is_file():
            return candidate
    raise InputError(f"{path}: no {FILES[0]} in it; give a folder that has one, or a file of that kind")


def read_books(path: Path) -> list[Book]:
    """The documents of a JSON Lines file with doc_id, title and text. Raises InputError naming the line."""
    found = []
    for where, row in json_rows(books_file(path)):
        fields = {name: row.get(name) for name in ("doc_id", "title", "text")}
        for name, value in fields.items():
            if not isinstance(value, str) or not value.strip():
                raise InputError(f"{where}: {name} must be a string that is not blank, found {value!r}; write one")
        found.append(Book(row["doc_id"], row["title"], str(row.get("lang") or ""), row["text"]))
    if not found:
        raise InputError(f"{path}: empty; at least one document is needed")
    return found


def pieces(books: Sequence[Book], n_characters: int, size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """The books one after another, and again from the first, until there are so many characters."""
    while n_characters > 0:
        for piece in _one_round(books, size):
            if n_characters <= 0:
                return
            yield piece[:n_characters]
            n_characters -= len(piece)


def characters_for(books: Sequence[Book], tokenizer: Tokenizer, n_tokens: int) -> int:
    """How many characters of `pieces` have about so many tokens: to a token in a piece, counted once a round."""
    cut = list(_one_round(books, PIECE_CHARACTERS))
    counts = [tokenizer.count(piece) for piece in cut]
    whole_rounds, rest = divmod(n_tokens, sum(counts))
    characters = whole_rounds * sum(map(len, cut))
    for piece, count, stop in zip(cut, counts, accumulate(counts), strict=True):
        if stop >= rest:
            return characters + round(len(piece) * (rest - (stop - count)) / count)
        characters += len(piece)
    return characters


def sections(books: Sequence[Book], tokenizer: Tokenizer, n_tokens: int, n_sections: int) -> list[str]:
    """Texts of about `n_tokens` tokens from evenly spread places of the books, in turn a book each.

    Each begins at a paragraph. Raises InputError when the books are too short for so many.
    """
    found = []
    for i in range(n_sections):
        book = books[i % len(books)]
        turns = (n_sections - i % len(books) - 1) // len(books) + 1  # sections of this book
        place = (i // len(books)) * len(book.text) // turns
        paragraph = book.text.find(_BETWEEN, place)
        start = 0 if place == 0 else (paragraph if paragraph >= 0 else place)
        text = _first_tokens(book.text[start:].lstrip(), tokenizer, n_tokens)
        if text is None:
            raise InputError(
                f"{book.title}: fewer than {n_tokens:,} tokens from character {start:,} on; ask for fewer sections"
            )
        found.append(text)
    return found


def _first_tokens(text: str, tokenizer: Tokenizer, n_tokens: int) -> str | None:
    """The beginning of a text with so many tokens; None when it is shorter."""
    length = 8 * n_tokens  # no language here has more characters a token; else it is doubled
    while True:
        offsets = tokenizer.encode_with_offsets(text[:length]).offsets
        if len(offsets) > n_tokens:
            return text[: offsets[n_tokens][0]]
        if length >= len(text):
            return None
        length *= 2


def _one_round(books: Sequence[Book], size: int) -> Iterator[str]:
    for book in books:
        text = book.text + _BETWEEN
        yield from (text[start : start + size] for start in range(0, len(text), size))
