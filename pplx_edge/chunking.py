"""Text to chunks: structure first, then sentences, then the token limit, and never inside a character as people see it.

A chunk is cut at the strongest break within its limit: a Markdown heading, a blank line, a line, a sentence, a space.
The document is tokenised once; a chunk's length is the number of the document's tokens that it touches.
"""

import re
from bisect import bisect
from collections.abc import Iterator

import numpy as np
import regex

from pplx_edge.errors import InputError
from pplx_edge.tokenization import Tokenizer
from pplx_edge.types import Chunk

DEFAULT_CHUNK_TOKENS = 128

# How strong a break is before a character; 0 is the inside of a grapheme cluster, where nothing is ever cut.
_GRAPHEME, _SPACE, _CONTINUATION, _SENTENCE, _LINE, _PARAGRAPH, _BLOCK, _HEADING = range(1, 9)
_LEAST_SHARE = 4  # a break in the first quarter of a full chunk is passed over, unless what follows is unbroken

_GRAPHEME_CLUSTER = regex.compile(r"\X")
_GAP = re.compile(r"(?<=\S)\s+(?=\S)")
_BLANK = re.compile(r"\s*")
_SENTENCE_END = re.compile(r"[.!?…][\"')\]’”»]*\s+(?=\S)|[。！？｡][\"'’”」』）】]*")
_HEADING_LINE = re.compile(r"#{1,6}\s")
_FENCE = re.compile(r"^(?:```|~~~)", re.MULTILINE)


def chunk_text(text: str, tokenizer: Tokenizer, max_tokens: int = DEFAULT_CHUNK_TOKENS) -> list[Chunk]:
    """Slices of a text in order, which hold every non-blank character exactly once and overlap nowhere.

    None touches more than `max_tokens` tokens, save a single grapheme cluster that has more all by itself. Blanks
    between chunks belong to none; a blank text has no chunks.

    Raises InputError for a limit below 1 or a text that is not valid Unicode.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens {max_tokens} is out of range: a chunk has at least 1 token")
    return list(_Chunker(text, tokenizer, max_tokens).chunks())


class _Chunker:
    def __init__(self, text: str, tokenizer: Tokenizer, max_tokens: int):
        self.text, self.max_tokens = text, max_tokens
        offsets = np.array(tokenizer.encode_with_offsets(text).offsets, np.int64).reshape(-1, 2)
        # Normalisation may hand out offsets that step back by a character; a search needs them sorted.
        self.token_starts, self.token_stops = np.maximum.accumulate(offsets, axis=0).T
        self.breaks = _breaks(text)

    def chunks(self) -> Iterator[Chunk]:
        start = self.skip_blank(0)
        while start < len(self.text):
            cut = self.next_cut(start)
            yield Chunk(start, self.before_blank(start, cut))
            start = self.skip_blank(cut)

    def next_cut(self, start: int) -> int:
        """Where the chunk that begins at `start` ends, its trailing blanks included."""
        stop, least = self.reach(start, self.max_tokens), self.reach(start, self.max_tokens // _LEAST_SHARE)
        level, cut = self.strongest(max(least, start + 1), stop)
        if stop == len(self.text):
            return cut if level == _HEADING else stop
        if level < _SENTENCE:
            level, cut = self.strongest(start + 1, stop)
        return cut if level else self.next_grapheme(start)

    def reach(self, start: int, n_tokens: int) -> int:
        """The furthest position up to which no more than `n_tokens` tokens are touched from `start` on."""
        first_past = int(np.searchsorted(self.token_stops, start, side="right")) + n_tokens
        return int(self.token_starts[first_past]) if first_past < len(self.token_starts) else len(self.text)

    def strongest(self, low: int, high: int) -> tuple[int, int]:
        """The strongest break in `[low, high]` and where: the last of its kind, but the first of headings."""
        window = self.breaks[low : high + 1]
        if not window.size:
            return 0, high
        level = int(window.max())
        found = int(window.argmax()) if level == _HEADING else window.size - 1 - int(window[::-1].argmax())
        return level, low + found

    def next_grapheme(self, start: int) -> int:
        return start + 1 + int(np.argmax(self.breaks[start + 1 :] > 0))

    def skip_blank(self, position: int) -> int:
        """The first position from here on that is not blank, or a blank that carries a combining mark."""
        position = _end(_BLANK, self.text, position)
        while position < len(self.text) and not self.breaks[position]:
            position -= 1
        return position

    def before_blank(self, start: int, cut: int) -> int:
        """Where the blanks before a cut begin."""
        stop = start + len(self.text[start:cut].rstrip())
        while not self.breaks[stop]:
            stop += 1
        return stop


def _breaks(text: str) -> np.ndarray:
    """The strength of the break before each character and at the end, uint8 `[len(text) + 1]`."""
    breaks = _grapheme_breaks(text)
    fences = [match.start() for match in _FENCE.finditer(text)]
    for gap in _GAP.finditer(text):
        if breaks[gap.end()]:
            breaks[gap.end()] = _gap_strength(text, gap, fences)
    for match in _SENTENCE_END.finditer(text):
        if 0 < breaks[match.end()] < _SENTENCE:
            breaks[match.end()] = _SENTENCE
    return np.frombuffer(breaks, np.uint8)


def _grapheme_breaks(text: str) -> bytearray:
    """1 before each grapheme cluster and at the end, else 0; an array of bytes, as it is written one at a time."""
    if text.isascii() and "\r" not in text:
        return bytearray(b"\1") * (len(text) + 1)
    breaks = bytearray(len(text) + 1)
    breaks[0] = _GRAPHEME
    for cluster in _GRAPHEME_CLUSTER.finditer(text):
        breaks[cluster.end()] = _GRAPHEME
    return breaks


def _gap_strength(text: str, gap: re.Match[str], fences: list[int]) -> int:
    """How strong the break after a run of blanks is."""
    blanks, stop = gap.group(), gap.end()
    n_lines = blanks.count("\n") or blanks.count("\r")
    if not n_lines:
        return _SPACE
    in_code = bisect(fences, stop - 1) % 2
    previous_line = text[text.rfind("\n", 0, gap.start()) + 1 : gap.start()]
    if _HEADING_LINE.match(previous_line) and not in_code:
        return _SPACE  # a heading stays with what it heads
    if _HEADING_LINE.match(text, stop) and blanks.endswith("\n") and not in_code:
        return _HEADING
    if n_lines == 1:
        deeper = _indent(text[text.rfind("\n", 0, stop) + 1 : stop]) > _indent(previous_line)
        return _CONTINUATION if deeper else _LINE
    return _BLOCK if blanks.endswith("\n") else _PARAGRAPH


def _indent(line: str) -> int:
    """Blanks at the beginning of a line."""
    return _end(_BLANK, line, 0)


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position
