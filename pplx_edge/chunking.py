"""Text to chunks: structure first, then sentences, then the token limit, and never inside a character as people see it.

A chunk is cut at the strongest break within its limit: a Markdown heading, a blank line, a line, a sentence, a space.
A chunk's length is the number of the text's tokens that it touches.

Text is read in sections, each of which begins where a chunk does. Chunks near a section's end, which could come out
otherwise with more text, are left to the next section. Where sections begin depends on the text alone, so chunks do
not depend on the pieces that a stream comes in, and a stream is chunked like the same text in one piece.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import regex

from pplx_edge.errors import InputError
from pplx_edge.structure import BLANK, HEADING, SENTENCE, breaks, joins
from pplx_edge.tokenization import Tokenizer
from pplx_edge.types import DEFAULT_CHUNK_TOKENS, TEXT_FORMATS, Chunk, TextFormat

_LEAST_SHARE = 4  # a break in the first quarter of a full chunk is passed over, unless what follows is unbroken
_SECTION_CHARS_A_TOKEN = 64
_LEAST_SECTION = 4096
_MOST_GROWTH = 16  # of a section without a chunk that ends; then one is cut where it ends, even inside a character
_SLACK = 256  # characters after a chunk that may say something about its end
_MARK = re.compile(r"^(?:```|~~~|(#{1,6})[ \t]+(\S.*))", re.MULTILINE)
_CLUSTER = regex.compile(r"\X")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkOptions:
    """How text is cut: at most `max_tokens` a chunk, of which the last `overlap` before it are repeated at its start.

    Raises InputError for options out of range.
    """

    max_tokens: int = DEFAULT_CHUNK_TOKENS
    overlap: int = 0
    format: TextFormat = "markdown"

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"max_tokens {self.max_tokens} is out of range: a chunk has at least 1 token")
        if not 0 <= self.overlap < self.max_tokens:
            raise InputError(f"overlap {self.overlap} must be at least 0 and below the {self.max_tokens} of a chunk")
        if self.format not in TEXT_FORMATS:
            raise InputError(f"text format {self.format!r} is not one of {', '.join(TEXT_FORMATS)}")


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A slice `[start, stop)` of a document with its text, line (from 1), page, and path of Markdown headings."""

    start: int
    stop: int
    text: str
    line: int
    page: int | None
    heading: tuple[str, ...]


def chunk_text(text: str, tokenizer: Tokenizer, max_tokens: int = DEFAULT_CHUNK_TOKENS) -> list[Chunk]:
    """Slices of a text in order, which hold every non-blank character exactly once and overlap nowhere.

    None touches more than `max_tokens` tokens, save a single grapheme cluster that has more all by itself. Blanks
    between chunks belong to none; a blank text has no chunks.

    Raises InputError for a limit below 1 or a text that is not valid Unicode.
    """
    chunks = stream_chunks([(text, None)], tokenizer, ChunkOptions(max_tokens=max_tokens))
    return [Chunk(chunk.start, chunk.stop) for chunk in chunks]


def stream_chunks(
    pieces: Iterable[tuple[str, int | None]], tokenizer: Tokenizer, options: ChunkOptions
) -> Iterator[TextChunk]:
    """Chunks of a text that comes in pieces `(text, page)`, each as soon as it is certain.

    Without overlap, chunks and the blanks between them are the text. An overlap is not carried over thousands of
    blanks. Memory is that of one section, some `64 · max_tokens` characters; a run of text with no place to cut is cut
    after sixteen times that.
    """
    chunker = _StreamChunker(pieces, tokenizer, options)
    return chunker.with_overlap() if options.overlap else chunker.chunks()


class _StreamChunker:
    def __init__(self, pieces: Iterable[tuple[str, int | None]], tokenizer: Tokenizer, options: ChunkOptions):
        self.window, self.tokenizer, self.options = _TextWindow(pieces), tokenizer, options
        self.outline = _Outline(options.format == "markdown")
        self.section_size = max(_LEAST_SECTION, _SECTION_CHARS_A_TOKEN * options.max_tokens)

    def chunks(self) -> Iterator[TextChunk]:
        window = self.window
        while window.skip_blank():
            section, found, used = self.next_section()
            line, counted = window.line, 0
            self.outline.read(section, window.at_line_start)
            for start, stop in found:
                line, counted = line + section.count("\n", counted, start), start
                heading = self.outline.enter(section, start, stop)
                offset = window.offset + start
                yield TextChunk(offset, window.offset + stop, section[start:stop], line, window.page(offset), heading)
            self.outline.leave(used)
            window.drop(used)

    def next_section(self) -> tuple[str, list[tuple[int, int]], int]:
        """Text that begins with a chunk, the slices of chunks that are certain, and how much of it they use up."""
        size, most = self.section_size, _MOST_GROWTH * self.section_size
        while True:
            last = self.window.fill(size)
            section = self.window.text[:size]
            chunker = _SectionChunker(section, self.tokenizer, self.options, self.outline.in_code)
            found, used = chunker.certain(last=last, forced=size >= most)
            if found:
                return section, found, used
            size = min(most, 4 * size)

    def with_overlap(self) -> Iterator[TextChunk]:
        """Chunks that begin with the last tokens of the chunk before, at most all of it."""
        before: TextChunk | None = None
        for chunk in self.chunks():
            yield self.overlapped(before, chunk) if before else chunk
            before = chunk

    def overlapped(self, before: TextChunk, chunk: TextChunk) -> TextChunk:
        offsets = self.tokenizer.encode_with_offsets(before.text).offsets
        wanted = offsets[-self.options.overlap][0] if len(offsets) >= self.options.overlap else 0
        clusters = (match.start() for match in _CLUSTER.finditer(before.text))
        cut = next((place for place in clusters if place >= wanted and not before.text[place].isspace()), None)
        gap = self.window.between(before.stop, chunk.start)
        if cut is None or gap is None:
            return chunk
        line = before.line + before.text.count("\n", 0, cut)
        text = before.text[cut:] + gap + chunk.text
        return TextChunk(before.start + cut, chunk.stop, text, line, chunk.page, chunk.heading)


class _SectionChunker:
    def __init__(self, text: str, tokenizer: Tokenizer, options: ChunkOptions, in_code: bool):
        self.text, self.max_tokens = text, options.max_tokens
        offsets = np.array(tokenizer.encode_with_offsets(text).offsets, np.int64).reshape(-1, 2)
        # Normalisation may hand out offsets that step back by a character; a search needs them sorted.
        self.token_starts, self.token_stops = np.maximum.accumulate(offsets, axis=0).T
        self.breaks = breaks(text, options.format, in_code)

    def certain(self, *, last: bool, forced: bool) -> tuple[list[tuple[int, int]], int]:
        """Slices of chunks and where the text after them begins: all in a `last` section, at least one if `forced`."""
        found: list[tuple[int, int]] = []
        start = 0
        while start < len(self.text):
            sure = last or self.reach(start, self.max_tokens) + _SLACK <= len(self.text)
            if not sure and (found or not forced):
                break
            cut = self.next_cut(start)
            found.append((start, self.before_blank(start, cut)))
            start = self.skip_blank(cut)
        return found, start

    def next_cut(self, start: int) -> int:
        """Where the chunk that begins at `start` ends, its trailing blanks included."""
        stop, least = self.reach(start, self.max_tokens), self.reach(start, self.max_tokens // _LEAST_SHARE)
        level, cut = self.strongest(max(least, start + 1), stop)
        if stop == len(self.text):
            return cut if level == HEADING else stop
        if level < SENTENCE:
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
        found = int(window.argmax()) if level == HEADING else window.size - 1 - int(window[::-1].argmax())
        return level, low + found

    def next_grapheme(self, start: int) -> int:
        return start + 1 + int(np.argmax(self.breaks[start + 1 :] > 0))

    def skip_blank(self, position: int) -> int:
        """The first position from here on that is not blank, or a blank that carries a combining mark."""
        position = _end(BLANK, self.text, position)
        while position < len(self.text) and not self.breaks[position]:
            position -= 1
        return position

    def before_blank(self, start: int, cut: int) -> int:
        """Where the blanks before a cut begin."""
        stop = start + len(self.text[start:cut].rstrip())
        while not self.breaks[stop]:
            stop += 1
        return stop


class _TextWindow:
    """The part of a stream that is not chunked yet, and where it stands in the document."""

    def __init__(self, pieces: Iterable[tuple[str, int | None]]):
        self.pieces = iter(pieces)
        self.text, self.behind, self.offset, self.line, self.at_line_start = "", "", 0, 1, True
        self.pages: deque[tuple[int, int | None]] = deque([(0, None)])

    def fill(self, size: int) -> bool:
        """Read on until there are more than `size` characters; returns whether the stream ends within them."""
        parts, n_chars = [self.text], len(self.text)
        while n_chars <= size:
            piece = next(self.pieces, None)
            if piece is None:
                break
            if piece[1] != self.pages[-1][1]:
                self.pages.append((self.offset + n_chars, piece[1]))
            parts.append(piece[0])
            n_chars += len(piece[0])
        self.text = "".join(parts)
        return n_chars <= size

    def skip_blank(self) -> bool:
        """Go on to the next character that is not blank; False at the end."""
        while True:
            ended = self.fill(_LEAST_SECTION)
            start = _end(BLANK, self.text, 0)
            if start < len(self.text):
                self.drop(start - 1 if joins(self.text, start) else start)
                return True
            # The last blank stays: what comes next may be a mark that belongs to it.
            self.drop(start if ended else start - 1)
            if ended:
                return False

    def drop(self, n_chars: int) -> None:
        """Leave the first characters behind."""
        if n_chars:
            self.line += self.text.count("\n", 0, n_chars)
            self.at_line_start = self.text[n_chars - 1] == "\n"
            self.behind = (self.behind + self.text[:n_chars])[-_LEAST_SECTION:]
            self.text, self.offset = self.text[n_chars:], self.offset + n_chars

    def between(self, start: int, stop: int) -> str | None:
        """The text `[start, stop)`, which begins in what was left behind; None when that is too long ago."""
        first = self.offset - len(self.behind)
        return (self.behind + self.text)[start - first : stop - first] if start >= first else None

    def page(self, offset: int) -> int | None:
        """The page of a position that is not before the last one asked for."""
        while len(self.pages) > 1 and self.pages[1][0] <= offset:
            self.pages.popleft()
        return self.pages[0][1]


class _Outline:
    """The path of Markdown headings at a place, and whether it is in a block of code."""

    def __init__(self, marked: bool):
        self.marked, self.in_code = marked, False
        self.path: list[tuple[int, str]] = []
        self.marks: deque[re.Match[str]] = deque()

    def read(self, section: str, at_line_start: bool) -> None:
        """Find the marks of a section."""
        found = _MARK.finditer(section) if self.marked else ()
        self.marks = deque(mark for mark in found if mark.start() or at_line_start)

    def enter(self, section: str, start: int, stop: int) -> tuple[str, ...]:
        """The path at a chunk: of what is before it, and of the headings that it begins with."""
        self.leave(start)
        while self.marks and self.marks[0].start() < stop and self.marks[0][1] and not self.in_code:
            if section[start : self.marks[0].start()].strip():
                break
            start = self.marks[0].end()
            self.apply(self.marks.popleft())
        return tuple(title for _, title in self.path)

    def leave(self, position: int) -> None:
        """Take note of all marks before a position."""
        while self.marks and self.marks[0].start() < position:
            self.apply(self.marks.popleft())

    def apply(self, mark: re.Match[str]) -> None:
        if not mark[1]:
            self.in_code = not self.in_code
        elif not self.in_code:
            level = len(mark[1])
            self.path = [*((depth, title) for depth, title in self.path if depth < level), (level, mark[2].strip())]


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position
