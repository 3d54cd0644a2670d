"""Find the structure of a text: the strength of the break before each character, and the headings.

A text may begin in the middle of a document; `LineState` carries the required state from the text before it.
"""

import re
from bisect import bisect, bisect_left
from dataclasses import dataclass
from functools import cache

import numpy as np
import regex

from pplx_edge.types import Markup

# Strengths of the break before a character; 0 is inside a grapheme cluster, which is never split.
GRAPHEME, SPACE, CONTINUATION, SENTENCE, LINE, PARAGRAPH, BLOCK, HEADING = range(1, 9)

_BMP = 1 << 16
_HEAD_CHARS = 128
_TITLE_CHARS = 120

_CLUSTER = regex.compile(r"\X")
# There is always a break between two of these (UAX 29). Excluded are characters that may join a neighbor, and CR.
_APART = regex.compile(r"[\p{GCB=Other}\p{GCB=Control}\p{GCB=LF}\p{GCB=LV}\p{GCB=LVT}]+")
_SENTENCE_END = re.compile(r"[.!?…][\"')\]’”»]*\s+(?=\S)|[。！？｡][\"'’”」』）】]*")
_HEADING_LINE = re.compile(r"#{1,6}\s")
_HEADING = re.compile(r"^(#{1,6})[ \t]+([^\r\n]*)", re.MULTILINE)
_FENCE = re.compile(r"^(?:```|~~~)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LineState:
    """The state at the start of a text: `head` is the start of the line it continues; `fenced` means in fenced code."""

    head: str = ""
    fenced: bool = False


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading line: its offset in characters, its level from 1 to 6, and its title, cut at 120 characters."""

    start: int
    level: int
    title: str


class Structure:
    """The structure of one text.

    `breaks`, uint8 `[len(text) + 1]`, is the strength of the break before each character and at the end. `headings`
    lists the headings in order.
    """

    def __init__(self, text: str, before: LineState = LineState(), markup: Markup = "markdown"):
        self.text, self.before = text, before
        self.has_headings = markup == "markdown"
        self.fences = self._line_starts(_FENCE) if self.has_headings else []
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        self.breaks = grapheme_breaks(text, codes)
        self._mark_gaps(codes)
        self._mark_sentences()
        self.headings = self._find_headings() if self.has_headings else []

    def state_at(self, position: int) -> LineState:
        """Return the state of a text that begins at a position of this one."""
        line = self.text.rfind("\n", 0, position) + 1
        head = self.text[line : min(position, line + _HEAD_CHARS)]
        fenced = self.before.fenced != bool(bisect_left(self.fences, position) % 2)
        return LineState(head if line else (self.before.head + head)[:_HEAD_CHARS], fenced)

    def _line_starts(self, pattern: re.Pattern[str]) -> list[int]:
        """Return the offsets of matching lines; the start of the text counts only if it is the start of a line."""
        return [match.start() for match in pattern.finditer(self.text) if match.start() or not self.before.head]

    def _mark_gaps(self, codes: np.ndarray) -> None:
        """Set the breaks after runs of whitespace."""
        blank = _looked_up(_blank_table(), codes, beyond=False)
        edges = np.diff(blank.astype(np.int8), prepend=np.int8(0))
        starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        starts = starts[: len(stops)]
        stops_apart = self.breaks[stops] > 0
        self.breaks[stops[stops_apart]] = SPACE
        ends_line = np.concatenate([[0], np.cumsum((codes == 10) | (codes == 13))])
        for i in np.flatnonzero(stops_apart & (ends_line[stops] > ends_line[starts])).tolist():
            start, stop = int(starts[i]), int(stops[i])
            self.breaks[stop] = self._line_gap_strength(start, stop)

    def _line_gap_strength(self, start: int, stop: int) -> int:
        """Return the strength of the break after a run of whitespace that contains a line ending."""
        text = self.text
        blanks = text[start:stop]
        n_lines = blanks.count("\n") or blanks.count("\r")
        line = text.rfind("\n", 0, start) + 1
        previous_line = text[line:start] if line else self.before.head + text[:start]
        if self.has_headings and not self._fenced(stop - 1):
            if _HEADING_LINE.match(previous_line + blanks[:1]):
                return SPACE  # keep a heading with the text that follows it
            if _HEADING_LINE.match(text, stop) and blanks.endswith("\n"):
                return HEADING
        if n_lines == 1:
            deeper = len(blanks) - blanks.rfind("\n") - 1 > _indent(previous_line)
            return CONTINUATION if deeper else LINE
        return BLOCK if blanks.endswith("\n") else PARAGRAPH

    def _fenced(self, position: int) -> bool:
        return self.before.fenced != bool(bisect(self.fences, position) % 2)

    def _mark_sentences(self) -> None:
        breaks = self.breaks
        stops = np.array([match.end() for match in _SENTENCE_END.finditer(self.text)], np.int64)
        breaks[stops[(breaks[stops] > 0) & (breaks[stops] < SENTENCE)]] = SENTENCE

    def _find_headings(self) -> list[Heading]:
        return [
            Heading(match.start(), len(match[1]), match[2].rstrip(" \t#")[:_TITLE_CHARS])
            for match in _HEADING.finditer(self.text)
            if (match.start() or not self.before.head) and not self._fenced(match.start()) and match[2].rstrip(" \t#")
        ]


def grapheme_breaks(text: str, codes: np.ndarray) -> np.ndarray:
    """Return 1 before each grapheme cluster and at the end, otherwise 0, as uint8 `[len(text) + 1]`.

    `codes` are the code points of the text. For speed, the full grapheme rule is applied only to runs of characters
    that may join their neighbors.
    """
    breaks = np.full(len(text) + 1, GRAPHEME, np.uint8)
    apart = _looked_up(_apart_table(), codes, beyond=False)
    joined = np.concatenate([[0], (~(apart[:-1] & apart[1:])).astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(joined)).tolist()
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        stops = [match.end() for match in _CLUSTER.finditer(text, first, last + 1)]
        breaks[first + 1 : last + 1] = 0
        breaks[stops] = GRAPHEME
    return breaks


def _looked_up(table: np.ndarray, codes: np.ndarray, *, beyond: bool) -> np.ndarray:
    """Return the table's entry for each code point, and `beyond` for code points past the end of the table."""
    found = table[np.minimum(codes, _BMP - 1)]
    return np.where(codes < _BMP, found, beyond)


@cache
def _apart_table() -> np.ndarray:
    table = np.zeros(_BMP, bool)
    for match in _APART.finditer("".join(map(chr, range(_BMP)))):
        table[match.start() : match.end()] = True
    return table


@cache
def _blank_table() -> np.ndarray:
    return np.array([chr(code).isspace() for code in range(_BMP)])


def _indent(line: str) -> int:
    """Return the number of whitespace characters at the start of a line."""
    return len(line) - len(line.lstrip())
