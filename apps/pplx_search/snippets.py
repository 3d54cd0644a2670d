"""The part of a passage that shows best why it was found."""

import regex

_WORD = regex.compile(r"[\p{L}\p{N}]+")
_LEAST_LETTERS = 3  # shorter words are everywhere
_STEM = 5  # letters by which words count as alike


def snippet(passage: str, question: str, width: int) -> str:
    """At most `width` characters on one line: the stretch with most words of the question, from the start of a word."""
    text = " ".join(passage.split())
    if len(text) <= width:
        return text
    wanted = {
        stem for word in _WORD.findall(question.casefold()) if len(word) >= _LEAST_LETTERS for stem in [word[:_STEM]]
    }
    places = [(m.start(), m.group().casefold()[:_STEM]) for m in _WORD.finditer(text)]
    hits = [(start, stem) for start, stem in places if stem in wanted]
    best, most = 0, 0
    for start, _ in hits:
        found = len({stem for at, stem in hits if start <= at < start + width * 3 // 4})
        if found > most:
            best, most = start, found
    begin = max((start for start, _ in places if start <= max(0, best - width // 8)), default=0)
    end = begin + width - 1
    return ("…" if begin else "") + text[begin:end].rstrip() + ("…" if end < len(text) else "")
