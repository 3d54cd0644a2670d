"""Where a text may be cut, and how well: headings, blocks, paragraphs, lines, sentences, spaces, characters as seen."""

import re
from bisect import bisect

import numpy as np
import regex

from pplx_edge.types import TextFormat

# How strong a break is before a character; 0 is the inside of a grapheme cluster, where nothing is ever cut.
GRAPHEME, SPACE, CONTINUATION, SENTENCE, LINE, PARAGRAPH, BLOCK, HEADING = range(1, 9)

BLANK = re.compile(r"\s*")
HEADING_LINE = re.compile(r"#{1,6}[ \t]")
_GRAPHEME_CLUSTER = regex.compile(r"\X")
_GAP = re.compile(r"(?<=\S)\s+(?=\S)")
_SENTENCE_END = re.compile(r"[.!?…][\"')\]’”»]*\s+(?=\S)|[。！？｡][\"'’”」』）】]*")
_FENCE = re.compile(r"^(?:```|~~~)", re.MULTILINE)


def breaks(text: str, format: TextFormat = "markdown", in_code: bool = False) -> np.ndarray:
    """The strength of the break before each character and at the end, uint8 `[len(text) + 1]`.

    Only Markdown has headings and fences; `in_code` says that the text begins inside of a fence. Code has no sentences.
    """
    strengths = _grapheme_breaks(text)
    marked = format == "markdown"
    fences = fence_lines(text) if marked else []
    for gap in _GAP.finditer(text):
        if strengths[gap.end()]:
            code = not marked or in_code != bool(bisect(fences, gap.end() - 1) % 2)
            strengths[gap.end()] = _gap_strength(text, gap, code)
    for match in _SENTENCE_END.finditer(text) if format != "code" else ():
        if 0 < strengths[match.end()] < SENTENCE:
            strengths[match.end()] = SENTENCE
    return np.frombuffer(strengths, np.uint8)


def fence_lines(text: str) -> list[int]:
    """Where the lines that open or close a block of code begin."""
    return [match.start() for match in _FENCE.finditer(text)]


def joins(text: str, position: int) -> bool:
    """Whether the characters before and at a position are one character as people see it."""
    return 0 < position < len(text) and bool(_GRAPHEME_CLUSTER.fullmatch(text[position - 1 : position + 1]))


def _grapheme_breaks(text: str) -> bytearray:
    """1 before each grapheme cluster and at the end, else 0; an array of bytes, as it is written one at a time."""
    if text.isascii() and "\r" not in text:
        return bytearray(b"\1") * (len(text) + 1)
    strengths = bytearray(len(text) + 1)
    strengths[0] = GRAPHEME
    for cluster in _GRAPHEME_CLUSTER.finditer(text):
        strengths[cluster.end()] = GRAPHEME
    return strengths


def _gap_strength(text: str, gap: re.Match[str], in_code: bool) -> int:
    """How strong the break after a run of blanks is."""
    blanks, stop = gap.group(), gap.end()
    n_lines = blanks.count("\n") or blanks.count("\r")
    if not n_lines:
        return SPACE
    previous_line = text[text.rfind("\n", 0, gap.start()) + 1 : gap.start()]
    if HEADING_LINE.match(previous_line) and not in_code:
        return SPACE  # a heading stays with what it heads
    if HEADING_LINE.match(text, stop) and blanks.endswith("\n") and not in_code:
        return HEADING
    if n_lines == 1:
        deeper = _indent(text[text.rfind("\n", 0, stop) + 1 : stop]) > _indent(previous_line)
        return CONTINUATION if deeper else LINE
    return BLOCK if blanks.endswith("\n") else PARAGRAPH


def _indent(line: str) -> int:
    """Blanks at the beginning of a line."""
    return len(line) - len(line.lstrip())
