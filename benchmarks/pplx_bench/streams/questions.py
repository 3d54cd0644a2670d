"""Questions about whole books, derived from the books alone and the same in every run.

A book is cut into as many equal stretches as it gets questions. In each, the first paragraph with enough sentences
loses one: the middle-most of fitting length that occurs nowhere else. That sentence, which is no longer in the text
that is encoded, is the question, alone or after the book's title and a colon. The right chunks are those that hold the
text on either side of the gap: one, or two when a border of chunks fell just there.

So a question asks for the place that a sentence was taken from, by what it says and by which book it is from. It cannot
show how well questions are answered that readers put in words of their own.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pplx_bench.streams.books import Book

LEAST_SENTENCES = 4  # of a paragraph that loses one
LEAST_WORDS, MOST_WORDS = 8, 40
_PARAGRAPH = re.compile(r"\S(?:.|\n(?!\s*\n))*")
_ABBREVIATIONS = r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\bNr)(?<!\bArt)(?<!\bAbs)"
_SENTENCE_GAP = re.compile(rf"(?<=[a-zßäöü\"'”’)—])(?:{_ABBREVIATIONS}[.!?…]+[\"')\]’”»]*)\s+(?=[\"'“‘«(]*[A-ZÄÖÜ])")


@dataclass(frozen=True, slots=True)
class Question:
    """A sentence that was taken out of a book, and the last character before and the first after its place."""

    text: str
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class AskedBook:
    """A book under its title, less the sentences that are asked for, and these."""

    id: str
    title: str
    text: str
    questions: tuple[Question, ...]


def asked(book: Book, n_questions: int) -> AskedBook:
    """The book with up to so many questions; fewer where a stretch has no paragraph that fits."""
    text = book.titled
    taken = list(_chosen(text, n_questions))
    parts, questions, position, length = [], [], 0, 0
    for start, stop in taken:
        parts.append(text[position:start])
        length += start - position
        before = length - 1 - (len(parts[-1]) - len(parts[-1].rstrip()))
        questions.append(Question(" ".join(text[start:stop].split()), before, length))
        position = stop
    return AskedBook(book.id, book.title, "".join([*parts, text[position:]]), tuple(questions))


def right_chunks(question: Question, bounds: Sequence[tuple[int, int]]) -> list[int]:
    """Places of the chunks `[start, stop)` that hold the characters on either side of the gap, in order."""
    wanted = (question.before, question.after)
    return [i for i, (start, stop) in enumerate(bounds) if any(start <= place < stop for place in wanted)]


def sentences(paragraph: str) -> list[tuple[int, int]]:
    """`[start, stop)` of each sentence of a paragraph, the blanks after it included: they tile it."""
    cuts = [0, *(match.end() for match in _SENTENCE_GAP.finditer(paragraph)), len(paragraph)]
    return [(a, b) for a, b in pairwise(cuts) if b > a]


def _chosen(text: str, n: int) -> Iterator[tuple[int, int]]:
    """`[start, stop)` of the sentences to take out, one a stretch, in order."""
    stretches = [(len(text) * i // n, len(text) * (i + 1) // n) for i in range(n)]
    for start, stop in stretches:
        for paragraph in _PARAGRAPH.finditer(text, start, stop):
            begins = paragraph.start() > start or not start  # else the stretch cut it
            if begins and paragraph.end() < stop and (found := _middle_sentence(text, paragraph)):
                yield found
                break


def _middle_sentence(text: str, paragraph: re.Match[str]) -> tuple[int, int] | None:
    """The sentence nearest the middle of a paragraph, neither its first nor its last, that can be asked for."""
    bounds = sentences(paragraph.group())
    if len(bounds) < LEAST_SENTENCES:
        return None
    inner = range(1, len(bounds) - 1)
    for i in sorted(inner, key=lambda i: (abs(2 * i - len(bounds) + 1), i)):
        start, stop = (paragraph.start() + place for place in bounds[i])
        sentence = text[start:stop].strip()
        if LEAST_WORDS <= len(sentence.split()) <= MOST_WORDS and text.count(sentence) == 1:
            return start, stop
    return None
