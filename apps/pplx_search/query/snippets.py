"""Snippets: the part of a passage that best shows why it was found."""

import textwrap

import regex

_WORD = regex.compile(r"[\p{L}\p{N}]+")
_SENTENCE_END = regex.compile(r"[.!?…。！？]['\"”’)\]]*\s+(?=\P{Ll})")
_LEAST_LETTERS = 3  # shorter words are too common
_STEM = 5  # words with the same first letters match


def snippet(passage: str, question: str, width: int) -> str:
    """Return the part of a passage that contains most of the query, in one line of at most `width` characters.

    It consists of whole words. Longer query words count more than short ones, which are common. It starts at the
    beginning of a sentence if there is one nearby.
    """
    text = " ".join(passage.split())
    if len(text) <= width:
        return text
    words = [(match.start(), match.group().casefold()) for match in _WORD.finditer(text)]
    begin = _begin(text, words, _best(words, question.casefold(), width), width)
    room = width - 1 - bool(begin)
    shown = text[begin:] if len(text) - begin <= room + 1 else _whole_words(text[begin : begin + room + 1]) + "…"
    return ("…" if begin else "") + shown


def snippet_lines(passage: str, question: str, width: int, n_lines: int = 2) -> list[str]:
    """Return a snippet as at most `n_lines` lines of at most `width` characters."""
    room = n_lines * width
    while len(lines := textwrap.wrap(snippet(passage, question, room), width, break_on_hyphens=False)) > n_lines:
        room -= width // 8
    return lines


def _best(words: list[tuple[int, str]], question: str, width: int) -> int:
    """Return the start of the part with most query words, counting each word once; 0 if there are none."""
    wanted = {word[:_STEM] for word in _WORD.findall(question) if len(word) >= _LEAST_LETTERS}
    hits = [(start, word[:_STEM], len(word)) for start, word in words if word[:_STEM] in wanted]
    best, most = 0, 0
    for start, _, _ in hits:
        lengths = {stem: length for at, stem, length in hits if start <= at < start + width * 3 // 4}
        if sum(lengths.values()) > most:
            best, most = start, sum(lengths.values())
    return best


def _begin(text: str, words: list[tuple[int, str]], best: int, width: int) -> int:
    """Return the start of a sentence, or at least of a word, shortly before the best part."""
    if best < width // 8:
        return 0
    nearby = max(0, best - width // 4)
    starts = [match.end() for match in _SENTENCE_END.finditer(text, nearby, best + 1)]
    if starts:
        return starts[-1]
    blanks = (start for start, _ in words if start <= best - width // 8 and text[start - 1].isspace())
    return max(blanks, default=0)


def _whole_words(text: str) -> str:
    """Return the text without its last word if that is cut off, unless the text has hardly any spaces."""
    head = text if text[-1].isspace() else text[:-1].rpartition(" ")[0]
    return head.rstrip() if len(head) > len(text) * 3 // 4 else text[:-1]
