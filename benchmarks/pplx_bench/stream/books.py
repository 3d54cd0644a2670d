"""Long real texts: whole books, repeated to any length, sections of them, and questions derived from them.

A book is split into as many equal stretches as it gets questions. In each, the first paragraph with enough sentences
loses one: the sentence nearest the middle that has a suitable length and occurs nowhere else. That sentence, which is
no longer in the encoded text, is the question, by itself or after the book's title and a colon. The relevant chunks
contain the text on either side of the gap: one chunk, or two if a chunk ends there. So a question asks for the place
that a sentence was taken from. It does not show how well questions in a reader's own words are answered.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from pplx_bench.retrieval.beir import json_rows
from pplx_edge.errors import InputError
from pplx_edge.text.tokenization import Tokenizer

FILES = ("longdocs.jsonl.gz", "longdocs.jsonl")
PIECE_CHARACTERS = 1 << 16
LEAST_SENTENCES = 4  # of a paragraph that loses one
LEAST_WORDS, MOST_WORDS = 8, 40
_BETWEEN = "\n\n"  # two books
_PARAGRAPH = re.compile(r"\S(?:.|\n(?!\s*\n))*")
_ABBREVIATIONS = r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\bNr)(?<!\bArt)(?<!\bAbs)"
_SENTENCE_GAP = re.compile(rf"(?<=[a-zßäöü\"'”’)—])(?:{_ABBREVIATIONS}[.!?…]+[\"')\]’”»]*)\s+(?=[\"'“‘«(]*[A-ZÄÖÜ])")


@dataclass(frozen=True, slots=True)
class Book:
    """A long document."""

    id: str
    title: str
    lang: str
    text: str

    @property
    def titled(self) -> str:
        """The text below its title as a heading."""
        return f"# {self.title}\n\n{self.text}"


@dataclass(frozen=True, slots=True)
class Question:
    """A sentence removed from a book, with the positions of the last character before the gap and the first after."""

    text: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class AskedBook:
    """A book below its title, without the sentences that are its questions."""

    id: str
    title: str
    text: str
    questions: tuple[Question, ...]


def books_file(path: Path) -> Path:
    """Return the file of long documents: the path itself, or in it. Raises InputError if there is none."""
    for candidate in (path, *(path / name for name in FILES)):
        if candidate.is_file():
            return candidate
    raise InputError(f"{path}: no {FILES[0]} in it; give a folder that has one, or such a file")


def read_books(path: Path) -> list[Book]:
    """Return the documents of a JSON Lines file with doc_id, title and text. Raises InputError naming the line."""
    found = []
    for where, row in json_rows(books_file(path)):
        for name in ("doc_id", "title", "text"):
            if not isinstance(value := row.get(name), str) or not value.strip():
                raise InputError(f"{where}: {name} must be a string that is not blank, found {value!r}; write one")
        found.append(Book(row["doc_id"], row["title"], str(row.get("lang") or ""), row["text"]))
    if not found:
        raise InputError(f"{path}: empty; at least one document is needed")
    return found


def pieces(books: Sequence[Book], n_characters: int, size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yield the books one after another, repeatedly, up to a number of characters."""
    while n_characters > 0:
        for piece in _one_round(books, size):
            if n_characters <= 0:
                return
            yield piece[:n_characters]
            n_characters -= len(piece)


def characters_for(books: Sequence[Book], tokenizer: Tokenizer, n_tokens: int) -> int:
    """Return how many characters of `pieces` have about `n_tokens` tokens."""
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
    """Return texts of about `n_tokens` tokens from evenly spaced positions, each book in turn.

    Each section begins at a paragraph. Raises InputError if the books are too short.
    """
    found = []
    for i in range(n_sections):
        book = books[i % len(books)]
        turns = (n_sections - i % len(books) - 1) // len(books) + 1  # sections of this book
        position = (i // len(books)) * len(book.text) // turns
        paragraph = book.text.find(_BETWEEN, position)
        start = 0 if position == 0 else (paragraph if paragraph >= 0 else position)
        text = _first_tokens(book.text[start:].lstrip(), tokenizer, n_tokens)
        if text is None:
            raise InputError(
                f"{book.title}: fewer than {n_tokens:,} tokens from character {start:,} on; ask for fewer sections"
            )
        found.append(text)
    return found


def asked(book: Book, n_questions: int) -> AskedBook:
    """Return the book with up to `n_questions` questions, fewer if a stretch has no suitable paragraph."""
    text = book.titled
    parts, questions, position, length = [], [], 0, 0
    for start, stop in _chosen(text, n_questions):
        parts.append(text[position:start])
        length += start - position
        before = length - 1 - (len(parts[-1]) - len(parts[-1].rstrip()))
        questions.append(Question(" ".join(text[start:stop].split()), before, length))
        position = stop
    return AskedBook(book.id, book.title, "".join([*parts, text[position:]]), tuple(questions))


def relevant_chunks(question: Question, bounds: Sequence[tuple[int, int]]) -> list[int]:
    """Return the indices of the chunks `[start, stop)` with the characters on either side of the gap."""
    wanted = (question.before, question.after)
    return [i for i, (start, stop) in enumerate(bounds) if any(start <= position < stop for position in wanted)]


def sentences(paragraph: str) -> list[tuple[int, int]]:
    """Return `[start, stop)` of each sentence of a paragraph, including the whitespace after it."""
    cuts = [0, *(match.end() for match in _SENTENCE_GAP.finditer(paragraph)), len(paragraph)]
    return [(a, b) for a, b in pairwise(cuts) if b > a]


def _one_round(books: Sequence[Book], size: int) -> Iterator[str]:
    for book in books:
        text = book.text + _BETWEEN
        yield from (text[start : start + size] for start in range(0, len(text), size))


def _first_tokens(text: str, tokenizer: Tokenizer, n_tokens: int) -> str | None:
    """Return the beginning of a text with `n_tokens` tokens, or None if it is shorter."""
    length = 8 * n_tokens  # more characters than tokens of these texts have on average; doubled if not
    while True:
        offsets = tokenizer.encode_with_offsets(text[:length]).offsets
        if len(offsets) > n_tokens:
            return text[: offsets[n_tokens][0]]
        if length >= len(text):
            return None
        length *= 2


def _chosen(text: str, n: int) -> Iterator[tuple[int, int]]:
    """Yield `[start, stop)` of the sentences to remove, one in each stretch, in order."""
    for start, stop in pairwise(len(text) * i // n for i in range(n + 1)):
        for paragraph in _PARAGRAPH.finditer(text, start, stop):
            begins = paragraph.start() > start or not start  # otherwise the stretch starts inside the paragraph
            if begins and paragraph.end() < stop and (found := _middle_sentence(text, paragraph)):
                yield found
                break


def _middle_sentence(text: str, paragraph: re.Match[str]) -> tuple[int, int] | None:
    """Return the suitable sentence nearest the middle of a paragraph, neither its first nor its last."""
    bounds = sentences(paragraph.group())
    if len(bounds) < LEAST_SENTENCES:
        return None
    for i in sorted(range(1, len(bounds) - 1), key=lambda i: (abs(2 * i - len(bounds) + 1), i)):
        start, stop = (paragraph.start() + position for position in bounds[i])
        sentence = text[start:stop].strip()
        if LEAST_WORDS <= len(sentence.split()) <= MOST_WORDS and text.count(sentence) == 1:
            return start, stop
    return None
