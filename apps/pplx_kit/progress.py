"""The progress bar of a run over files: files done, tokens per second, and the estimated time left."""

import sys
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

_RATE_SECONDS, _LEFT_SECONDS = 2.0, 6.0  # minimum time before showing a rate, and an estimate
_PACE_SECONDS = 60.0  # the rate is averaged over this time
_DRAW_SECONDS = 0.1
_HOUR, _MINUTE = 3600, 60


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a run: total files and bytes to read, how many are done, and the tokens embedded so far.

    `n_bytes` is 0 if the size of a file is unknown. A file that is being embedded counts one byte for each character
    that already has a vector.
    """

    n_files: int
    n_bytes: int
    files: int
    bytes: int
    tokens: int


class Bar:
    """A progress bar on stderr, drawn if that is a terminal. `start` is shown until the first progress."""

    def __init__(self, quiet: bool = False, start: str = ""):
        from tqdm import tqdm

        self._bar: Any = tqdm(
            total=0, desc=start, disable=quiet or not sys.stderr.isatty(), leave=False, bar_format="{desc}"
        )
        self._drawn = 0.0
        self.last: Progress | None = None
        self._past: deque[tuple[float, Progress]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def show(self, progress: Progress) -> None:
        """Update the bar with the current progress."""
        now = time.monotonic()
        if self.last is None:
            self._bar.bar_format = "{percentage:3.0f}% {bar:24} {desc}" if progress.n_bytes else "{desc}"
        elif now - self._drawn < _DRAW_SECONDS and progress.files < progress.n_files:
            self.last = progress
            return
        self.last, self._drawn = progress, now
        self._past.append((now, progress))
        while now - self._past[0][0] > _PACE_SECONDS:
            self._past.popleft()
        self._bar.total, self._bar.n = progress.n_bytes, progress.bytes
        before, earlier = self._past[0]
        self._bar.set_description_str(described(progress, earlier, now - before))


def described(progress: Progress, earlier: Progress, seconds: float) -> str:
    """Return `12 of 500 files, 4,210 tokens/s, about 3 min left`, from the rate since `earlier`, `seconds` ago."""
    parts = [f"{progress.files:,} of {progress.n_files:,} files"] if progress.n_files else []
    n_tokens, n_bytes = progress.tokens - earlier.tokens, progress.bytes - earlier.bytes
    if n_tokens and seconds >= _RATE_SECONDS:
        parts.append(f"{n_tokens / seconds:,.0f} tokens/s")
        if n_bytes > 0 and progress.bytes < progress.n_bytes and seconds >= _LEFT_SECONDS:
            parts.append(f"about {duration(max(1, seconds * (progress.n_bytes - progress.bytes) / n_bytes))} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Return a duration as `2 h 5 min`, `3 min`, `40 s` or `0.3 s`."""
    if seconds >= _HOUR:
        return f"{int(seconds // _HOUR)} h {int(seconds % _HOUR // _MINUTE)} min"
    if seconds >= _MINUTE:
        return f"{round(seconds / _MINUTE)} min"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
