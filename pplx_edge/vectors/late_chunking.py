"""Divide documents of any length into windows, so that the model reads each chunk with context on both sides.

The chunks of a document, joined with or without separators, form one sequence of tokens. A sequence that fits in the
window is one row. A longer one is read in several rows of the form

    [ heading tokens | left margin | owned | right margin ]

where the heading tokens repeat the title and headings, and the tokens that the windows own follow each other without
gap or overlap. The vector of a chunk comes from the window that owns it, so the model sees at least one margin of
context on each side, or everything up to the end of the document. Only a chunk that is longer than the tokens a window
can own is divided between windows; its vector is the mean over all its parts.

The windows depend only on the token sequence, so the same document always gives the same windows.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.types import StreamOptions, TextChunk, TokenRow

# The defaults of StreamOptions that depend on the model or on each other.
DEFAULT_WINDOW = 4096
DEFAULT_MARGIN = 256  # larger margins do not improve fidelity: docs/benchmarks/streams.md
DEFAULT_HEADING_TOKENS = 64  # for contextual models; improves books and short documents: docs/benchmarks/streams.md
_MARGIN_SHARE = 8  # in a small window, the default margin is 1/8 of the window
_HEADING_SHARE = 8  # in a small window, the default number of heading tokens is 1/8 of the window
_LEAST_OWNED_SHARE = 4  # a window must own at least 1/4 of its tokens
_LEAST_WINDOW = 64
_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class WindowSizes:
    """The maximum number of tokens in a row, in each of its margins, and in its repeated title and headings."""

    window: int
    margin: int
    heading_tokens: int

    @classmethod
    def of(cls, options: StreamOptions, spec: ModelSpec) -> "WindowSizes":
        """Return the sizes for a model and options. Raises InputError if they leave too little room for chunks."""
        window = min(DEFAULT_WINDOW, spec.max_tokens) if options.window is None else options.window
        if options.window_mb is not None:
            window = window_within(options.window_mb, spec)
        if window > spec.max_tokens:
            raise InputError(f"window {window:,}: this model reads at most {spec.max_tokens:,} tokens")
        margin = min(DEFAULT_MARGIN, window // _MARGIN_SHARE) if options.margin is None else options.margin
        heading_tokens = options.heading_tokens
        if heading_tokens is None:
            room = window - 2 * margin - -(-window // _LEAST_OWNED_SHARE)
            most = min(DEFAULT_HEADING_TOKENS, window // _HEADING_SHARE, room)
            heading_tokens = max(0, most) if spec.contextual else 0
        owned = window - 2 * margin - heading_tokens
        if owned * _LEAST_OWNED_SHARE < window:
            raise InputError(
                f"two margins of {margin:,} and {heading_tokens:,} heading tokens leave {max(owned, 0):,} tokens of a "
                f"window of {window:,} for chunks, but at least a quarter is needed; choose a larger window or smaller "
                f"margins"
            )
        return cls(window, margin, heading_tokens)


def window_within(window_mb: int, spec: ModelSpec) -> int:
    """Return the largest window whose activations fit in `window_mb` megabytes on top of the loaded model.

    Raises InputError, naming the minimum budget, if the window would be smaller than 64 tokens.
    """
    window = window_mb * _MEGABYTE // spec.activation_bytes
    least = min(_LEAST_WINDOW, spec.max_tokens)
    if window < least:
        needed = -(-least * spec.activation_bytes // _MEGABYTE)
        raise InputError(
            f"window_mb {window_mb}: a window of {least} tokens needs at least {needed} MB on top of the model"
        )
    return min(window, spec.max_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class ChunkTokens:
    """A chunk as the model reads it: its token ids, int64 `[T]`, and those of the headings of its section."""

    chunk: TextChunk
    ids: np.ndarray
    heading_ids: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The part of a chunk that a window owns: tokens `[start, stop)` of the row.

    `index` is the number of the chunk in its document, `n_tokens` the number of tokens in the whole chunk. `closes` is
    True for the last part of a chunk.
    """

    chunk: TextChunk
    index: int
    n_tokens: int
    start: int
    stop: int
    closes: bool


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A row and the parts of chunks whose means are taken from it; part i is span i of the row."""

    row: TokenRow
    parts: tuple[Part, ...]


class RunningMean:
    """The mean of a chunk over its parts, accumulated in float32. The mean of a chunk in one part is not changed."""

    def __init__(self) -> None:
        self.total: np.ndarray | None = None

    def add(self, part: Part, mean: np.ndarray) -> np.ndarray | None:
        """Add the mean of a part. Return the mean of the chunk if this is its last part, otherwise None."""
        if self.total is None and part.closes:
            return mean
        weighted = mean * np.float32(part.stop - part.start)
        self.total = weighted if self.total is None else self.total + weighted
        if not part.closes:
            return None
        total, self.total = self.total, None
        return total / np.float32(part.n_tokens)


def plan_windows(chunks: Iterable[ChunkTokens], sizes: WindowSizes, sep_id: int | None) -> Iterator[Window]:
    """Yield the windows of a document, each as soon as enough chunks were read to fill it.

    `sep_id` is the separator token; None joins chunks without one. Only one window is kept in memory, and only one
    chunk is read beyond it.
    """
    return _Planner(iter(chunks), sizes, sep_id).windows()


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    """A chunk at tokens `[start, stop)` of the document."""

    tokens: ChunkTokens
    index: int
    start: int
    stop: int


class _Planner:
    def __init__(self, chunks: Iterator[ChunkTokens], sizes: WindowSizes, sep_id: int | None):
        self.chunks, self.sizes = chunks, sizes
        self.sep_id = sep_id
        self.separator = np.array([] if sep_id is None else [sep_id], np.int64)
        self.placed: deque[_Placed] = deque()  # chunks from the left margin onward
        self.n_passed = 0  # how many of them are complete
        self.n_read, self.end, self.is_whole = 0, 0, False
        self.title = np.empty(0, np.int64)

    def windows(self) -> Iterator[Window]:
        owned_from = 0
        while self.read_past(owned_from) or self.n_passed < len(self.placed):  # the last chunk may have no tokens
            left = self.left_of(owned_from)
            repeated = self.repeated_ids(left) if owned_from else self.title[:0]
            limit = left + self.sizes.window - len(repeated)
            if not self.read_past(limit):
                yield self.window(repeated, left, owned_from, self.end, self.end)
                return
            stop = self.owned_stop(limit - self.sizes.margin)
            yield self.window(repeated, left, owned_from, stop, self.right_of(stop))
            owned_from = max(stop, self.placed[self.n_passed].start)
            self.forget_before(owned_from - self.sizes.margin - len(self.separator))

    def read_past(self, position: int) -> bool:
        """Read chunks until the sequence extends beyond a position. Return False if the document ends before it."""
        while self.end <= position and not self.is_whole:
            tokens = next(self.chunks, None)
            if tokens is None:
                self.is_whole = True
                break
            start = self.end + len(self.separator) if self.n_read else 0
            self.end = start + len(tokens.ids)
            self.placed.append(_Placed(tokens, self.n_read, start, self.end))
            if not self.n_read:
                self.title = tokens.ids[: self.sizes.heading_tokens]
            self.n_read += 1
        return self.end > position or (self.is_whole and position == 0 and self.n_read > 0)

    def left_of(self, owned_from: int) -> int:
        """Return the start of the left margin, skipping a separator there."""
        left = max(0, owned_from - self.sizes.margin)
        return left + len(self.separator) if left and self.is_separator(left) else left

    def right_of(self, stop: int) -> int:
        """Return the end of the right margin, without a separator there."""
        right = stop + self.sizes.margin
        return right - 1 if right > stop and self.is_separator(right - 1) else right

    def is_separator(self, position: int) -> bool:
        return bool(len(self.separator)) and any(placed.stop == position for placed in self.placed)

    def repeated_ids(self, left: int) -> np.ndarray:
        """Return the title, unless the row begins with it, and the headings of the first chunk that is owned."""
        size, sep = self.sizes.heading_tokens, self.separator
        heading = self.placed[self.n_passed].tokens.heading_ids[: size // 2]
        heading = np.concatenate([heading, sep])[:size] if len(heading) else heading
        room = size - len(heading) - len(sep)
        title = np.concatenate([self.title[:room], sep]) if left and room > 0 else sep[:0]
        return np.concatenate([title, heading])

    def owned_stop(self, top: int) -> int:
        """Return where the owned tokens end, at most `top`: the end of a chunk, or `top` if the first one is longer."""
        stop = top
        for placed in list(self.placed)[self.n_passed :]:
            if placed.stop > top:
                break
            stop = placed.stop
        return stop

    def window(self, repeated: np.ndarray, left: int, owned_from: int, stop: int, right: int) -> Window:
        """Return the row of repeated tokens and tokens `[left, right)`, with the parts in `[owned_from, stop)`."""
        shift = len(repeated) - left
        parts = []
        for placed in list(self.placed)[self.n_passed :]:
            closes = placed.stop <= stop
            if not closes and placed.start >= stop:
                break
            start, end = max(owned_from, placed.start), min(stop, placed.stop)
            n_tokens = placed.stop - placed.start
            parts.append(Part(placed.tokens.chunk, placed.index, n_tokens, start + shift, end + shift, closes))
            self.n_passed += closes
        ids = np.concatenate([repeated, self.slice(left, right)])
        return Window(TokenRow(ids, tuple((part.start, part.stop) for part in parts)), tuple(parts))

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Return tokens `[start, stop)` of the document."""
        base = self.placed[0].start
        ids = TokenRow.of_chunks([placed.tokens.ids for placed in self.placed], self.sep_id).ids
        return ids[start - base : stop - base]

    def forget_before(self, position: int) -> None:
        while self.n_passed and self.placed[0].stop < position:
            self.placed.popleft()
            self.n_passed -= 1
