"""Late chunking of documents of any length: which tokens are read together, and which vectors come from where.

The ids of a document are those of its chunks, with a separator between two if there is one. A document that fits the
window is read at once. A longer one is read in windows:

    document   ┃ a · b · c · d · e · f · g · h · i · j · k · l …
    window 0   ┃ a · b · c · d ‖ right margin
    window 1   ┃ sticky · left margin ‖ e · f · g ‖ right margin
    window 2   ┃ sticky ·             left margin ‖ h · i · j ‖ right margin

Between the bars is a window's core. Cores follow each other without a gap, and a chunk takes its vector from the
window whose core it is in: no other one holds more of what is around it on the side where it holds less. A chunk
longer than a core is spread over several; its vector is the mean over all its tokens.

Where windows begin and end follows from the chunks alone, so it is the same whenever a document is read again.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.types import TokenRow

DEFAULT_WINDOW = 4096
LEAST_WINDOW = 64
_BYTES_PER_FLOAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowOptions:
    """Tokens of a window, of the margin on each side of its core, and of what rides along at its front.

    `separator` is the id between two chunks, None for none. Raises InputError for sizes that leave no room for a core
    of a quarter of the window.
    """

    window: int
    margin: int
    sticky: int = 0
    separator: int | None = None

    def __post_init__(self) -> None:
        if self.window < LEAST_WINDOW:
            raise InputError(f"a window of {self.window} tokens is too short, the least is {LEAST_WINDOW}")
        if self.margin < 0 or self.sticky < 0:
            raise InputError(f"margin {self.margin} and sticky {self.sticky} must not be negative")
        room = self.window - 2 * self.margin - self.sticky
        if 4 * room < self.window:
            raise InputError(
                f"a window of {self.window:,} tokens with two margins of {self.margin:,} and {self.sticky:,} sticky "
                f"tokens leaves {room:,} for what is new in it, the least is {-(-self.window // 4):,}; "
                "take smaller margins or a larger window"
            )


@dataclass(frozen=True, slots=True, eq=False)
class ChunkTokens:
    """What windows are made of: a chunk's ids `[T]`, and what is sticky where it begins, ids `[S]`."""

    ids: np.ndarray
    sticky: Callable[[], np.ndarray]


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A row to be read, and for each of its spans the number of the chunk and whether the chunk ends with it."""

    row: TokenRow
    chunks: tuple[tuple[int, bool], ...]


def plan_windows(chunks: Iterator[ChunkTokens], options: WindowOptions) -> Iterator[Window]:
    """The windows of a document, each as soon as its right margin is there.

    No more is read from `chunks` than the window being made and one chunk after it.
    """
    return _Planner(chunks, options).windows()


class _Planner:
    """Holds the tokens from the left margin of the next core on. Places are counted from the document's start."""

    def __init__(self, chunks: Iterator[ChunkTokens], options: WindowOptions):
        self.chunks, self.options = chunks, options
        self.ids = np.empty(0, np.int64)
        self.first = 0  # place of ids[0]
        self.spans: deque[tuple[int, int, int, ChunkTokens]] = deque()  # number, start, stop of chunks still open
        self.n_chunks, self.ended = 0, False

    def windows(self) -> Iterator[Window]:
        options, start = self.options, 0
        if self.read_to(options.window):
            if self.n_chunks:
                yield self.window(0, self.stop, np.empty(0, np.int64))
            return
        while True:
            sticky = self.sticky_ids(start)
            left = min(options.margin, start)
            space = options.window - len(sticky) - left
            if self.read_to(start + space):
                yield self.window(start, self.stop, sticky)
                return
            stop = self.core_stop(start, start + space - options.margin)
            yield self.window(start, stop, sticky)
            start = stop
            self.forget(start)

    @property
    def stop(self) -> int:
        """Place after the last token that was read."""
        return self.first + len(self.ids)

    def read_to(self, place: int) -> bool:
        """Read chunks until there is more than `place`; returns whether the document ends within it."""
        parts, stop = [self.ids], self.stop
        while not self.ended and stop <= place:
            chunk = next(self.chunks, None)
            if chunk is None:
                self.ended = True
                break
            if self.n_chunks and self.options.separator is not None:
                parts.append(np.array([self.options.separator], np.int64))
                stop += 1
            parts.append(chunk.ids)
            self.spans.append((self.n_chunks, stop, stop + len(chunk.ids), chunk))
            self.n_chunks, stop = self.n_chunks + 1, stop + len(chunk.ids)
        self.ids = np.concatenate(parts)
        return self.ended and stop <= place

    def core_stop(self, start: int, limit: int) -> int:
        """Where a core that begins at `start` ends: after its last whole chunk up to `limit`, or within a long one."""
        whole = [stop for _, _, stop, _ in self.spans if start < stop <= limit]
        return max(whole, default=limit)

    def sticky_ids(self, start: int) -> np.ndarray:
        """What rides along with a core: nothing while the document's own beginning is in the window."""
        if not self.options.sticky or start <= self.options.margin:
            return np.empty(0, np.int64)
        chunk = next(chunk for _, _, stop, chunk in self.spans if stop > start)
        separator = [] if self.options.separator is None else [self.options.separator]
        ids = chunk.sticky()[: self.options.sticky - len(separator)]
        return np.concatenate([ids, np.array(separator, np.int64)]) if len(ids) else ids

    def window(self, start: int, stop: int, sticky: np.ndarray) -> Window:
        """The window with the core `[start, stop)`."""
        options = self.options
        low = max(start - options.margin, self.first)
        high = min(stop + options.margin, self.stop, low + options.window - len(sticky))
        shift = len(sticky) - low
        ids = np.concatenate([sticky, self.ids[low - self.first : high - self.first]])
        bounds, chunks = [], []
        while self.spans and (self.spans[0][1] < stop or self.spans[0][2] <= stop):
            number, first, last, _ = self.spans[0]
            bounds.append((max(first, start) + shift, min(last, stop) + shift))
            chunks.append((number, last <= stop))
            if last > stop:
                break
            self.spans.popleft()
        return Window(TokenRow(ids, tuple(bounds)), tuple(chunks))

    def forget(self, start: int) -> None:
        """Drop what is before the left margin of a core that begins at `start`."""
        low = max(self.first, start - self.options.margin)
        self.ids, self.first = self.ids[low - self.first :], low


def window_for_memory(spec: ModelSpec, megabytes: float) -> int:
    """Tokens of the largest window whose activations fit into so many MB (of 10⁶ bytes), beside the model itself.

    A token is counted as 3 intermediate and 6 hidden vectors of float32: the MLP's three, the residual stream, its
    norm, queries, keys and values, and the states that are returned. Attention is linear in memory.

    Raises InputError when not even the least window fits.
    """
    per_token = _BYTES_PER_FLOAT * (3 * spec.intermediate_size + 6 * max(spec.hidden_size, spec.q_size))
    window = int(megabytes * 1e6 // per_token)
    if window < 4 * LEAST_WINDOW:
        least = 4 * LEAST_WINDOW * per_token / 1e6
        raise InputError(
            f"a memory budget of {megabytes:g} MB is too small for this model, the least is {least:.0f} MB"
        )
    return min(window, spec.max_tokens)
