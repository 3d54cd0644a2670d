"""Split text into chunks: by structure first, then by sentences, then by the token limit, never inside a grapheme.

A chunk ends at the strongest break within its limit: a Markdown heading, a blank line, a line, a sentence or a space.

The text may be a stream. It is processed in blocks of fixed size that start at the start of a chunk. The chunks
therefore depend only on the text, not on how the stream is split into pieces, and no more than one block is kept in
memory. A block is tokenized once; the length of a chunk is the number of the block's tokens that it touches.
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

# A chunk has at most this many characters per token, which bounds the look-ahead; typical text has about four.
_CHARS_PER_TOKEN = 16
_LEAST_CHARS = 1024
_LEAST_BLOCK_CHARS = 8192
_CHUNKS_PER_BLOCK = 4
_GUARD_CHARS = 64  # look-ahead after the last possible cut, so that a heading or cluster there is complete
_GAP_CHARS = 16
_LEAST_SHARE = 4  # ignore breaks in the first quarter of a full chunk, unless the rest has no sentence break
_DIGEST_BYTES = 8

_BLANK = re.compile(r"\s*")


def chunk_text(text: str, tokenizer: Tokenizer, max_tokens: int = DEFAULT_CHUNK_TOKENS) -> list[Chunk]:
    """Split a text into chunks and return them in order, without overlap.

    Every character that is not whitespace is in exactly one chunk; whitespace between chunks is in none. A chunk
    touches at most `max_tokens` tokens, unless it is a single grapheme cluster with more. A text of only whitespace has
    no chunks.

    Raises InputError if the limit is less than 1 or the text is not valid Unicode.
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens {max_tokens} is out of range: it must be at least 1")
    stream = chunk_stream(pieces(text), tokenizer, StreamOptions(chunk_tokens=max_tokens))
    return [Chunk(chunk.start, chunk.stop) for chunk in stream]


def chunk_stream(stream: Iterator[Piece], tokenizer: Tokenizer, options: StreamOptions) -> Iterator[TextChunk]:
    """Yield the chunks of a stream of text in order, each as soon as enough text was read to know where it ends.

    Whitespace between chunks is in no chunk; every other character is in exactly one, except for the `overlap` that
    chunks repeat. A chunk has at most 16 characters per token of its limit, or 1,024 if that is more; longer text
    without a break is cut there. A grapheme cluster is cut only if it is longer than a block (`block_chars`). At most
    one block is read ahead.
    """
    return _Chunker(stream, tokenizer, options).chunks()


def block_chars(chunk_tokens: int) -> int:
    """Return the size of a block, in characters, for a chunk size in tokens."""
    return max(_LEAST_BLOCK_CHARS, _CHUNKS_PER_BLOCK * _most_chars(chunk_tokens))


def _most_chars(chunk_tokens: int) -> int:
    return max(_LEAST_CHARS, _CHARS_PER_TOKEN * chunk_tokens)


class _Chunker:
    """Splits a stream into chunks. Positions are offsets in the block, `text`; `window` knows the block's own offset.

    `previous_stop` is the end of the previous chunk, `start` the start of the next one, and `new_from` the start of its
    text that is not in the previous chunk. Without overlap, `start` equals `new_from`.
    """

    def __init__(self, stream: Iterator[Piece], tokenizer: Tokenizer, options: StreamOptions):
        self.window, self.tokenizer, self.options = _TextWindow(stream), tokenizer, options
        self.max_tokens = options.chunk_tokens - options.overlap
        self.max_chars, self.block_chars = _most_chars(options.chunk_tokens), block_chars(options.chunk_tokens)
        self.previous_stop = self.start = self.new_from = 0
        self.gap = ""
        self.path: list[Heading] = []

    def chunks(self) -> Iterator[TextChunk]:
        self.begin_block(LineState())
        while self.find_next():
            stop = self.before_blank(self.new_from, self.next_cut(self.new_from))
            yield self.chunk(stop)
            self.start, self.gap = self.overlap_start(stop), ""
            self.previous_stop = self.new_from = stop

    def begin_block(self, before: LineState) -> None:
        """Read and tokenize a block that starts at the beginning of the window."""
        self.window.fill(self.block_chars + 1)
        self.text = self.window.text[: self.block_chars]
        self.is_last = len(self.window.text) <= self.block_chars
        offsets = np.empty((0, 2), np.int64) if self.text.isspace() else self.tokenizer.offsets(self.text)
        self.token_starts, self.token_stops = offsets.T
        self.structure = Structure(self.text, before, self.options.markup)
        self.breaks, self.n_passed = self.structure.breaks, 0

    def find_next(self) -> bool:
        """Advance to the next chunk, first reading enough text to know where it ends. Return False if there is none."""
        while True:
            self.skip_gap()
            if self.is_last:
                return self.new_from < len(self.text)
            if self.new_from + self.max_chars + _GUARD_CHARS <= len(self.text):
                return True
            if self.new_from == len(self.text):  # keep the last blank: a combining mark may follow and form a cluster
                self.new_from, self.gap = self.new_from - 1, self.gap[:-1]
                self.start = min(self.start, self.new_from)
            self.move_block(self.start)

    def skip_gap(self) -> None:
        """Move `new_from` past whitespace. After more than 64 characters of it, the next chunk repeats no overlap."""
        stop, self.new_from = self.new_from, self.skip_blank(self.new_from)
        self.gap = (self.gap + self.text[stop : self.new_from])[-_GAP_CHARS:]
        if self.start == stop or self.new_from - self.previous_stop > _GUARD_CHARS:
            self.start = self.new_from

    def move_block(self, start: int) -> None:
        """Start a new block at a position in this one and discard the text before it."""
        self.pass_headings(start)
        before = self.structure.state_at(start)
        self.window.drop(start)
        self.previous_stop, self.start, self.new_from = (
            self.previous_stop - start,
            self.start - start,
            self.new_from - start,
        )
        self.begin_block(before)

    def chunk(self, stop: int) -> TextChunk:
        line, page = self.window.place(self.start)
        return TextChunk(
            start=self.window.start + self.start,
            stop=self.window.start + stop,
            text=self.text[self.start : stop],
            gap=self.gap if self.start == self.new_from else "",
            line=line,
            page=page,
            heading=self.heading(stop),
            digest=self.window.digest(stop),
        )

    def heading(self, stop: int) -> tuple[str, ...]:
        """Return the headings of the section of the chunk up to `stop`, including those at its start."""
        self.pass_headings(self.new_from)
        path, position = self.path, self.new_from
        for heading in islice(self.structure.headings, self.n_passed, None):
            if heading.start != position or position >= stop:
                break
            path = _under(path, heading)
            line_end = self.text.find("\n", position)
            position = self.skip_blank(line_end) if line_end >= 0 else len(self.text)
        return tuple(heading.title for heading in path)

    def pass_headings(self, position: int) -> None:
        """Update the current headings with those before a position."""
        headings = self.structure.headings
        while self.n_passed < len(headings) and headings[self.n_passed].start < position:
            self.path = _under(self.path, headings[self.n_passed])
            self.n_passed += 1

    def overlap_start(self, stop: int) -> int:
        """Return the start of the chunk after `[start, stop)`, including its overlap: a sentence start if possible."""
        if not self.options.overlap:
            return stop
        n_before = int(np.searchsorted(self.token_starts, stop)) - self.options.overlap
        low = max(self.start + 1, stop - self.max_chars, int(self.token_starts[max(n_before, 0)]))
        inside = self.breaks[low:stop]
        for level in (SENTENCE, SPACE, GRAPHEME):
            if (inside >= level).any():
                return low + int((inside >= level).argmax())
        return stop

    def next_cut(self, start: int) -> int:
        """Return the end of the chunk that begins at `start`, including trailing whitespace."""
        stop, least = self.reach(start, self.max_tokens), self.reach(start, self.max_tokens // _LEAST_SHARE)
        level, cut = self.strongest(max(least, start + 1), stop)
        if stop == len(self.text):
            return cut if level == HEADING else stop
        if level < SENTENCE:
            level, cut = self.strongest(start + 1, stop)
        return cut if level else self.next_grapheme(start)

    def reach(self, start: int, n_tokens: int) -> int:
        """Return the last position such that the text from `start` to there touches at most `n_tokens` tokens."""
        first_past = int(np.searchsorted(self.token_stops, start, side="right")) + n_tokens
        reached = int(self.token_starts[first_past]) if first_past < len(self.token_starts) else len(self.text)
        return min(reached, start + self.max_chars)

    def strongest(self, low: int, high: int) -> tuple[int, int]:
        """Return the strongest level of the breaks in `[low, high]`, and the position of the last break of that level.

        For headings, the position is that of the first one. The level is 0 if there is no break.
        """
        window = self.breaks[low : high + 1]
        if not window.size:
            return 0, high
        level = int(window.max())
        found = int(window.argmax()) if level == HEADING else window.size - 1 - int(window[::-1].argmax())
        return level, low + found

    def next_grapheme(self, start: int) -> int:
        return start + 1 + int(np.argmax(self.breaks[start + 1 :] > 0))

    def skip_blank(self, position: int) -> int:
        """Return the first position from here that is not whitespace, or is whitespace with a combining mark."""
        start, position = position, _after_blank(self.text, position)
        while start < position < len(self.text) and not self.breaks[position]:
            position -= 1
        return position

    def before_blank(self, start: int, cut: int) -> int:
        """Return the start of the whitespace before a cut."""
        stop = start + len(self.text[start:cut].rstrip())
        while not self.breaks[stop]:
            stop += 1
        return stop


class _TextWindow:
    """The part of the document in memory: `text` starts at character `start` of the document.

    Of dropped text, only the number of lines, the last page and the hash are kept.
    """

    def __init__(self, stream: Iterator[Piece]):
        self.stream, self.text, self.start = stream, "", 0
        self.hash, self.n_hashed = hashlib.blake2b(digest_size=_DIGEST_BYTES), 0
        self.line, self.n_lines_of = 1, 0
        self.pages: deque[tuple[int, int | None]] = deque()

    def fill(self, n_chars: int) -> None:
        """Read until `text` has at least `n_chars` characters or the stream ends."""
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
        """Return the line, from 1, and the page at a position. Positions must not decrease between calls."""
        absolute = self.start + position
        self.line += self.text.count("\n", self.n_lines_of - self.start, position)
        self.n_lines_of = absolute
        while len(self.pages) > 1 and self.pages[1][0] <= absolute:
            self.pages.popleft()
        return self.line, self.pages[0][1] if self.pages else None

    def digest(self, position: int) -> str:
        """Return a hash of the document up to a position. Positions must not decrease between calls."""
        self._hash_to(position)
        return self.hash.copy().hexdigest()

    def _hash_to(self, position: int) -> None:
        absolute = self.start + position
        if absolute > self.n_hashed:
            self.hash.update(self.text[self.n_hashed - self.start : position].encode())
            self.n_hashed = absolute


def _under(path: list[Heading], heading: Heading) -> list[Heading]:
    """Return the path of headings after a new heading."""
    return [*(above for above in path if above.level < heading.level), heading]


def _after_blank(text: str, position: int) -> int:
    match = _BLANK.match(text, position)
    return match.end() if match else position
