"""Windows over documents of any length, so that each chunk is read with context on both sides.

The chunks of a document, joined by separators or not, are one sequence of tokens. What fits the window is one row. A
longer sequence is read in rows of

    [ sticky | left margin | core | right margin ]

whose cores follow each other without gap or overlap. A chunk belongs to the core that it lies in, where it has at least
the margin around it, or all there is. Only a chunk that is longer than a core is cut, and its means are summed.

Where a window begins and ends follows from the sequence alone, so a plan can be made again from the beginning.
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
DEFAULT_MARGIN = 256  # benchmarks/README.md, Fidelity: windows decide, margins past this bring nothing
DEFAULT_STICKY = 64  # of models trained for context; benchmarks/README.md, Quality: it helps books and short documents
_MARGIN_SHARE = 8  # of a window that is too small for the default margin
_STICKY_SHARE = 8  # likewise
_LEAST_CORE_SHARE = 4
_LEAST_WINDOW = 64
_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class WindowSizes:
    """The tokens of a row, of its margins, and of what is repeated ahead of each row, at most."""

    window: int
    margin: int
    sticky: int

    @classmethod
    def of(cls, options: StreamOptions, spec: ModelSpec) -> "WindowSizes":
        """The sizes that the options mean for a model. Raises InputError when they leave no room for chunks."""
        window = min(DEFAULT_WINDOW, spec.max_tokens) if options.window is None else options.window
        if options.memory_mb is not None:
            window = window_within(options.memory_mb, spec)
        if window > spec.max_tokens:
            raise InputError(f"window {window:,}: this model reads {spec.max_tokens:,} tokens at most")
        margin = min(DEFAULT_MARGIN, window // _MARGIN_SHARE) if options.margin is None else options.margin
        sticky = options.sticky
        if sticky is None:
            room = window - 2 * margin - -(-window // _LEAST_CORE_SHARE)
            sticky = max(0, min(DEFAULT_STICKY, window // _STICKY_SHARE, room)) if spec.contextual else 0
        core = window - 2 * margin - sticky
        if core * _LEAST_CORE_SHARE < window:
            raise InputError(
                f"two margins of {margin:,} and {sticky:,} sticky tokens leave {max(core, 0):,} of a window of "
                f"{window:,} for chunks, at least a quarter is needed; choose a larger window or smaller margins"
            )
        return cls(window, margin, sticky)


def window_within(memory_mb: int, spec: ModelSpec) -> int:
    """The largest window whose activations take no more than so many megabytes beside the opened model.

    Raises InputError naming the least budget when there is none of 64 tokens.
    """
    window = memory_mb * _MEGABYTE // spec.activation_bytes
    least = min(_LEAST_WINDOW, spec.max_tokens)
    if window < least:
        needed = -(-least * spec.activation_bytes // _MEGABYTE)
        raise InputError(f"memory_mb {memory_mb}: a window of {least} tokens needs at least {needed} beside the model")
    return min(window, spec.max_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class ChunkTokens:
    """A chunk as the model reads it: ids int64 `[T]`, and the ids of the headings that it stands under."""

    chunk: TextChunk
    ids: np.ndarray
    heading_ids: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What a window's core holds of a chunk: `[start, stop)` tokens of the row. `closes` says that no more will come.

    `index` counts the document's chunks, `n_tokens` the tokens of the whole chunk.
    """

    chunk: TextChunk
    index: int
    n_tokens: int
    start: int
    stop: int
    closes: bool


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One row, and the parts of chunks that are taken from it, one a span of the row."""

    row: TokenRow
    parts: tuple[Part, ...]


class RunningMean:
    """The mean of a chunk over its parts. Float32 sums; a chunk in one part keeps its mean to the bit."""

    def __init__(self) -> None:
        self.total: np.ndarray | None = None

    def add(self, part: Part, mean: np.ndarray) -> np.ndarray | None:
        """The chunk's mean when this part closes it, else None."""
        if self.total is None and part.closes:
            return mean
        weighted = mean * np.float32(part.stop - part.start)
        self.total = weighted if self.total is None else self.total + weighted
        if not part.closes:
            return None
        total, self.total = self.total, None
        return total / np.float32(part.n_tokens)


def plan_windows(chunks: Iterable[ChunkTokens], sizes: WindowSizes, sep_id: int | None) -> Iterator[Window]:
    """The windows of a document, each as soon as the chunks that decide on it were taken.

    `sep_id` None joins chunks without a separator. Holds one window, and takes one chunk more to see that it is full.
    """
    return _Planner(iter(chunks), sizes, sep_id).windows()


@dataclass(frozen=True, slots=True, eq=False)
class _Placed:
    """A chunk at its place `[start, stop)` in the sequence of tokens."""

    tokens: ChunkTokens
    index: int
    start: int
    stop: int


class _Planner:
    def __init__(self, chunks: Iterator[ChunkTokens], sizes: WindowSizes, sep_id: int | None):
        self.chunks, self.sizes = chunks, sizes
        self.separator = np.array([] if sep_id is None else [sep_id], np.int64)
        self.placed: deque[_Placed] = deque()  # from the left margin on
        self.n_passed = 0  # of these, how many were closed
        self.n_read, self.end, self.is_whole = 0, 0, False
        self.title = np.empty(0, np.int64)

    def windows(self) -> Iterator[Window]:
        core = 0
        while self.read_past(core):
            left = self.left_of(core)
            sticky = self.sticky_ids(left) if core else self.title[:0]
            limit = left + self.sizes.window - len(sticky)
            if not self.read_past(limit):
                yield self.window(sticky, left, core, self.end, self.end)
                return
            stop = self.core_stop(limit - self.sizes.margin)
            yield self.window(sticky, left, core, stop, self.right_of(stop))
            core = max(stop, self.placed[self.n_passed].start)
            self.forget_before(core - self.sizes.margin - len(self.separator))

    def read_past(self, position: int) -> bool:
        """Takes chunks until the sequence is longer than that; False when it ends before."""
        while self.end <= position and not self.is_whole:
            tokens = next(self.chunks, None)
            if tokens is None:
                self.is_whole = True
                break
            start = self.end + len(self.separator) if self.n_read else 0
            self.end = start + len(tokens.ids)
            self.placed.append(_Placed(tokens, self.n_read, start, self.end))
            if not self.n_read:
                self.title = tokens.ids[: self.sizes.sticky]
            self.n_read += 1
        return self.end > position or (self.is_whole and position == 0 and self.n_read > 0)

    def left_of(self, core: int) -> int:
        """Where the left margin begins, not with a separator."""
        left = max(0, core - self.sizes.margin)
        return left + len(self.separator) if left and self.is_separator(left) else left

    def right_of(self, stop: int) -> int:
        """Where the right margin ends, not with a separator."""
        right = stop + self.sizes.margin
        return right - 1 if right > stop and self.is_separator(right - 1) else right

    def is_separator(self, position: int) -> bool:
        return bool(len(self.separator)) and any(placed.stop == position for placed in self.placed)

    def sticky_ids(self, left: int) -> np.ndarray:
        """The title, unless the row begins with it, and the headings of the first chunk of the core."""
        size, sep = self.sizes.sticky, self.separator
        heading = self.placed[self.n_passed].tokens.heading_ids[: size // 2]
        heading = np.concatenate([heading, sep])[:size] if len(heading) else heading
        room = size - len(heading) - len(sep)
        title = np.concatenate([self.title[:room], sep]) if left and room > 0 else sep[:0]
        return np.concatenate([title, heading])

    def core_stop(self, top: int) -> int:
        """Where the core ends that may not reach beyond `top`: behind a chunk, or in the one that fills it alone."""
        stop = top
        for placed in list(self.placed)[self.n_passed :]:
            if placed.stop > top:
                break
            stop = placed.stop
        return stop

    def window(self, sticky: np.ndarray, left: int, core: int, stop: int, right: int) -> Window:
        """The row of tokens `[left, right)` behind the sticky ones, with the parts that lie in `[core, stop)`."""
        shift = len(sticky) - left
        parts = []
        for placed in list(self.placed)[self.n_passed :]:
            closes = placed.stop <= stop
            if not closes and placed.start >= stop:
                break
            start, end = max(core, placed.start), min(stop, placed.stop)
            n_tokens = placed.stop - placed.start
            parts.append(Part(placed.tokens.chunk, placed.index, n_tokens, start + shift, end + shift, closes))
            self.n_passed += closes
        ids = np.concatenate([sticky, self.slice(left, right)])
        return Window(TokenRow(ids, tuple((part.start, part.stop) for part in parts)), tuple(parts))

    def slice(self, start: int, stop: int) -> np.ndarray:
        """The tokens `[start, stop)` of the sequence."""
        base = self.placed[0].start
        pieces = [piece for placed in self.placed for piece in (placed.tokens.ids, self.separator)]
        return np.concatenate(pieces)[start - base : stop - base]

    def forget_before(self, position: int) -> None:
        while self.n_passed and self.placed[0].stop < position:
            self.placed.popleft()
            self.n_passed -= 1
