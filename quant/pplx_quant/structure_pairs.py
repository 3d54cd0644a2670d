"""Make training pairs from the structure of texts: crops of a paragraph, cloze questions about it, and titles.

They teach word matching and topics in languages and domains for which there are few questions.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

from pplx_quant.data import TEXT_KINDS, Pair, ReadReport, file_key, list_files, read_rows, read_texts, text_language

MIN_CHARS = 120
MAX_QUERY_WORDS = 16
MAX_QUERY_CHARS = 40
KEEP_SENTENCE = 0.6
CLOZE_SHARE = 0.5
SENTENCE_END = re.compile(r"(?<=[.!?。！？।။။])\s+|(?<=[。！？।])|\n+")
SPACED = re.compile(r"\S+\s\S+\s\S+")
YEAR = re.compile(r"\b(1[0-9]{3}|20[0-9]{2})\b")
NUMBER = re.compile(r"\b\d[\d,.]*\b")
NAME = re.compile(r"(?<=[a-z,] )(?:[A-Z][\w'’-]+)(?: (?:of |the |de )?[A-Z][\w'’-]+)*")
WH_WORDS = {
    "year": ("When", "What year", "In what year"),
    "number": ("How many", "How much", "What number of"),
    "name": ("Who", "What", "Which", "Where", "What is the name of"),
}


def split_sentences(text: str) -> list[str]:
    """Return the non-empty sentences of a paragraph, stripped."""
    return [sentence.strip() for sentence in SENTENCE_END.split(text) if sentence and sentence.strip()]


def crop_pair(text: str, generator: random.Random) -> tuple[str, str] | None:
    """Return a part of one sentence, and the paragraph with or without the sentence; None for a short text."""
    sentences = split_sentences(text)
    if len(text) < MIN_CHARS or len(sentences) < 2:
        return None
    chosen = generator.randrange(len(sentences))
    query = crop_sentence(sentences[chosen], generator)
    if generator.random() < KEEP_SENTENCE:
        return query, text
    return query, " ".join(sentences[:chosen] + sentences[chosen + 1 :])


def crop_sentence(sentence: str, generator: random.Random) -> str:
    """Return random words of a sentence in their order, or a run of characters in scripts without spaces."""
    words = sentence.split()
    if not SPACED.search(sentence) or len(sentence) > 12 * len(words):
        length = generator.randint(6, MAX_QUERY_CHARS)
        start = generator.randint(0, max(0, len(sentence) - length))
        return sentence[start : start + length]
    start = generator.randint(0, max(0, len(words) - 2 * MAX_QUERY_WORDS))
    window = words[start : start + 2 * MAX_QUERY_WORDS]
    kept = sorted(generator.sample(range(len(window)), min(len(window), generator.randint(3, MAX_QUERY_WORDS))))
    return " ".join(window[place] for place in kept)


def cloze_question(text: str, generator: random.Random) -> tuple[str, str] | None:
    """Return an English cloze question and its paragraph, or None if the paragraph has no suitable sentence.

    The question is a question word and some words of a sentence, without one of its years, numbers or names.
    """
    sentences = [sentence for sentence in split_sentences(text) if 5 <= len(sentence.split()) <= 45]
    generator.shuffle(sentences)
    for sentence in sentences:
        spans = [
            (kind, match)
            for kind, pattern in (("year", YEAR), ("number", NUMBER), ("name", NAME))
            for match in pattern.finditer(sentence)
        ]
        if spans and len(text) >= MIN_CHARS:
            kind, match = generator.choice(spans)
            rest = (sentence[: match.start()] + " " + sentence[match.end() :]).split()
            kept = [word for word in rest if generator.random() < 0.7][:MAX_QUERY_WORDS]
            if len(kept) >= 3:
                return f"{generator.choice(WH_WORDS[kind])} {' '.join(kept).rstrip('.,;:')}?", text
    return None


def text_pairs(path: Path, per_paragraph: int, seed: int) -> Iterator[Pair]:
    """Yield at most `per_paragraph` crops, and for English clozes, of each paragraph of a file; one for novels."""
    lang = text_language(path)
    generator = random.Random(f"{seed}:{path.name}")
    for text, source in read_texts(path)[0]:
        for _ in range(1 if source.startswith("eltec") else per_paragraph):
            cloze = lang == "en" and generator.random() < CLOZE_SHARE
            pair = (cloze_question if cloze else crop_pair)(text, generator)
            if pair and all(side.strip() for side in pair):
                yield Pair(*pair, lang=lang, source=f"{'cloze' if cloze else 'crop'}.{source}")


def title_pairs(path: Path) -> Iterator[Pair]:
    """Yield the title and first chunk of each document in a file of chunks."""
    report = ReadReport(path)
    for _, row in read_rows(path, ("chunk", "lang", "doc_title"), report):
        if row.get("chunk_idx") == 0 and row["doc_title"].strip() != row["chunk"].strip():
            yield Pair(row["doc_title"], row["chunk"], row["lang"], f"title.{file_key(path)}")


def pair_groups(folder: Path, per_paragraph: int, seed: int) -> Iterator[tuple[str, Iterator[Pair]]]:
    """Yield groups of pairs of a data folder: `text.<lang>` of each text file, `title.<source>` of each chunk file."""
    for kind in TEXT_KINDS:
        for path in list_files(folder, kind, required=False):
            yield f"{kind}.{file_key(path)}", text_pairs(path, per_paragraph, seed)
    for path in list_files(folder, "chunks", required=False):
        yield f"title.{file_key(path)}", title_pairs(path)
