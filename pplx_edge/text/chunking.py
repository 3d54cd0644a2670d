"""Text to chunks: structure first, then sentences, then the token limit, and never inside a character as people see it.

A chunk is cut at the strongest break within its limit: a Markdown heading, a blank line, a line, a sentence, a space.

The text may be a stream. It is looked at in blocks of fixed size, each of which begins where a chunk begins; so what a
chunk is depends on the text alone, never on how the stream is cut into pieces, and no more than a block is held. A
block is tokenised once, and a chunk's length is the number of the block's tokens that it touches.
"""

import hashlib
import re
from collections import deque
from collections.abc import Iterator
from itertools import islice

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.text.sources import Piece, pieces
from pplx_edge.text.structure import GRAPHEME, HEADING, SENTENCE, SPACE, Heading, LineState, Structure
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import DEFAULT_CHUNK_TOKENS, Chunk, StreamOptions, TextChunk

# A chunk has at most this many characters a token, so that the look-ahead has an end; text has about four.
_CHARS_PER_TOKEN = 16
_LEAST_CHARS = 1024
_LEAST_BLOCK_CHARS = 8192
_CHUNKS_PER_BLOCK = 4
_GUARD_CHARS = 64  # behind the last place that may be cut, so that a heading or a cluster there is seen whole
_GAP_CHARS = 16
_LEAST_SHARE = 4  # a break in the first quarter of a full chunk is passed over, unless what follows is unbroken
_DIGEST_BYTES = 8

_BLANK = re.compile(r"\s*")


def chunk_text(text: str, tokenizer: Tokenizer, max_tokens: int = DEFAULT_CHUNK_TOKENS) -> list[Chunk]:
    """Slices of a text in order, which hold every non-blank character exactly once and overlap nowhere.

    None touches more than `max_tokens` tokens, save a single grapheme cluster that has more all by itself. Blanks
    between chunks belong to none; a blank text has no chunks.

    Raises InputError for a limit below 1 or a text that is not valid Unicode.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens {max_tokens} is out of range: a chunk has at least 1 token")
    stream = chunk_stream(pieces(text), tokenizer, StreamOptions(chunk_tokens=max_tokens))
    return [Chunk(chunk.start, chunk.stop) for chunk in stream]


def chunk_stream(stream: Iterator[Piece], tokenizer: Tokenizer, options: StreamOptions) -> Iterator[TextChunk]:
    """The chunks of a stream of text in order, each as soon as the text that decides on it was read.

    Blanks between chunks belong to none; all else is in exactly one, but for the `overlap` that a chunk repeats. A
    chunk has at most 16 characters a token (1,024 for small ones): what is longer without a break is cut there. A
    grapheme cluster is cut only when it is longer than a block (`block_chars`). Reads ahead by at most one block.
    """
    return _Chunker(stream, tokenizer, options).chunks()


def block_chars(chunk_tokens: int) -> int:
    """How many characters the chunker looks at together, for chunks of a size."""
    return max(_LEAST_BLOCK_CHARS, _CHUNKS_PER_BLOCK * _most_chars(chunk_tokens))


def _most_chars(chunk_tokens: int) -> int:
    return max(_LEAST_CHARS, _CHARS_PER_TOKEN * chunk_tokens)


class _Chunker:
    """Positions are those of the block, `text`; `window` adds the block's own place in the document.

    `first` is where the next chunk begins, `core` where in it begins what no chunk held before: behind `stop`, the end
    of the chunk before. All three are equal or grow, and without overlap `first` is `core`.
    """

    def __init__(self, stream: Iterator[Piece], tokenizer: Tokenizer, options: StreamOptions):
        self.window, self.tokenizer, self.options = _TextWindow(stream), tokenizer, options
        self.max_tokens = options.chunk_tokens - options.overlap
        self.max_chars, self.block_chars = _most_chars(options.chunk_tokens), block_chars(options.chunk_tokens)
        self.stop = self.first = self.core = 0
        self.gap = ""
        self.path: list[Heading] = []

    def chunks(self) -> Iterator[TextChunk]:
        self.begin_block(LineState())
        while self.find_next():
            stop = self.before_blank(self.core, self.next_cut(self.core))
            yield self.chunk(stop)
            self.first, self.gap = self.overlap_start(stop), ""
            self.stop = self.core = stop

    def begin_block(self, before: LineState) -> None:
        """Looks at the text from the window's beginning on."""
        self.window.fill(self.block_chars + 1)
        self.text = self.window.text[: self.block_chars]
        self.is_last = len(self.window.text) <= self.block_chars
        offsets = np.empty((0, 2), np.int64) if self.text.isspace() else self.tokenizer.offsets(self.text)
        self.token_starts, self.token_stops = offsets.T
        self.structure = Structure(self.text, before, self.options.format)
        self.breaks, self.n_passed = self.structure.breaks, 0

    def find_next(self) -> bool:
        """Moves to the next chunk, in a block that holds all that decides on it. False when there is none."""
        while True:
            self.skip_gap()
            if self.is_last:
                return self.core < len(self.text)
            if self.core + self.max_chars + _GUARD_CHARS <= len(self.text):
                return True
            if self.core == len(self.text):  # the last blank stays: a combining mark may follow and make it a character
                self.core, self.gap = self.core - 1, self.gap[:-1]
                self.first = min(self.first, self.core)
            self.move_block(self.first)

    def skip_gap(self) -> None:
        """Moves `core` behind blanks; they are not repeated when they are many."""
        stop, self.core = self.core, self.skip_blank(self.core)
        self.gap = (self.gap + self.text[stop : self.core])[-_GAP_CHARS:]
        if self.first == stop or self.core - self.stop > _GUARD_CHARS:
            self.first = self.core

    def move_block(self, start: int) -> None:
        """Begins a block at a position of this one, and forgets what is before it."""
        self.pass_headings(start)
        before = self.structure.state_at(start)
        self.window.drop(start)
        self.stop, self.first, self.core = self.stop - start, self.first - start, self.core - start
        self.begin_block(before)

    def chunk(self, stop: int) -> TextChunk:
        line, page = self.window.place(self.first)
        return TextChunk(
            start=self.window.start + self.first,
            stop=self.window.start + stop,
            text=self.text[self.first : stop],
            gap=self.gap if self.first == self.core else "",
            line=line,
            page=page,
            heading=self.heading(stop),
            digest=self.window.digest(stop),
        )

    def heading(self, stop: int) -> tuple[str, ...]:
        """The headings that the chunk up to `stop` stands under, those that it begins with included."""
        self.pass_headings(self.core)
        path, position = self.path, self.core
        for heading in islice(self.structure.headings, self.n_passed, None):
            if heading.start != position or position >= stop:
                break
            path = _under(path, heading)
            line_end = self.text.find("\n", position)
            position = self.skip_blank(line_end) if line_end >= 0 else len(self.text)
        return tuple(heading.title for heading in path)

    def pass_headings(self, position: int) -> None:
        """Takes in the headings before a position."""
        headings = self.structure.headings
        while self.n_passed < len(headings) and headings[self.n_passed].start < position:
            self.path = _under(self.path, headings[self.n_passed])
            self.n_passed += 1

    def overlap_start(self, stop: int) -> int:
        """Where the chunk after `[first, stop)` begins that repeats its end: a sentence if there is one."""
        if not self.options.overlap:
            return stop
        n_before = int(np.searchsorted(self.token_starts, stop)) - self.options.overlap
        low = max(self.first + 1, stop - self.max_chars, int(self.token_starts[max(n_before, 0)]))
        inside = self.breaks[low:stop]
        for level in (SENTENCE, SPACE, GRAPHEME):
            if (inside >= level).any():
                return low + int((inside >= level).argmax())
        return stop

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
        reached = int(self.token_starts[first_past]) if first_past < len(self.token_starts) else len(self.text)
        return min(reached, start + self.max_chars)

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
        start, position = position, _after_blank(self.text, position)
        while start < position < len(self.text) and not self.breaks[position]:
            position -= 1
        return position

    def before_blank(self, start: int, cut: int) -> int:
        """Where the blanks before a cut begin."""
        stop = start + len(self.text[start:cut].rstrip())
        while not self.breaks[stop]:
            stop += 1
        return stop


class _TextWindow:
    """The text that is looked at: `text` from the character `start` of the document on. What is dropped is forgotten,
    but for the number of its lines, its last page and its hash."""

    def __init__(self, stream: Iterator[Piece]):
        self.stream, self.text, self.start = stream, "", 0
        self.hash, self.n_hashed = hashlib.blake2b(digest_size=_DIGEST_BYTES), 0
        self.line, self.n_lines_of = 1, 0
        self.pages: deque[tuple[int, int | None]] = deque()

    def fill(self, n_chars: int) -> None:
        """Reads until there are so many characters, or the stream ends."""
        parts, found = [self.text], len(self.text)
        while found < n_chars and (piece := next(self.stream, None)) is not None:
            if piece.text and (not self.pages or self.pages[-1][1] != piece.page):
                self.pages.append((self.start + found, piece.page))
            parts.append(piece.text)
            found += len(piece.text)
        self.text = "".join(parts)

    def drop(self, n_chars: int) -> None:
        if n_chars:
            self.place(n_chars)
            self._hash_to(n_chars)
        self.text, self.start = self.text[n_chars:], self.start + n_chars

    def place(self, position: int) -> tuple[int, int | None]:
        """Line, from 1, and page at a position; positions may only grow."""
        absolute = self.start + position
        self.line += self.text.count("\n", self.n_lines_of - self.start, position)
        self.n_lines_of = absolute
        while len(self.pages) > 1 and self.pages[1][0] <= absolute:
            self.pages.popleft()
        return self.line, self.pages[0][1] if self.pages else None

    def digest(self, position: int) -> str:
        """A hash of the document up to a position; positions may only grow."""
        self._hash_to(position)
        return self.hash.copy().hexdigest()

    def _hash_to(self, position: int) -> None:
        absolute = self.start + position
        if absolute > self.n_hashed:
            self.hash.update(self.text[self.n_hashed - self.start : position].encode())
            self.n_hashed = absolute


def _under(path: list[Heading], heading: Heading) -> list[Heading]:
    """The path of headings from a heading on."""
    return [*(above for above in path if above.level < heading.level), heading]


def _after_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position
