"""The bar of an indexing run: files, tokens a second, and an honest guess of what is left."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from pplx_search.cli.opening import say
from pplx_search.indexing import Progress

_MIN_SECONDS = 2.0  # before a rate is worth telling
_DRAW_SECONDS = 0.1
_HOUR, _MINUTE = 3600, 60


class Bar:
    """Drawn on stderr when that is a terminal. An interruption is told with what is done, wherever stderr goes."""

    def __init__(self, quiet: bool = False):
        self._bar = tqdm(
            total=0,
            desc="looking for files",
            disable=quiet or not sys.stderr.isatty(),
            leave=False,
            bar_format="{desc}",
        )
        self._started, self._drawn = time.monotonic(), 0.0
        self._last: Progress | None = None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
        if kind is KeyboardInterrupt:
            last = self._last
            far = f" at {last.files:,} of {last.n_files:,} files" if last is not None and last.n_files else ""
            say(f"interrupted{far}; all so far can be searched; run it again to go on")

    def show(self, progress: Progress) -> None:
        """Draws how far the run is."""
        now = time.monotonic()
        if self._last is None:
            self._started = now  # of reading and embedding: what finding the files took says nothing about the rest
            self._bar.bar_format = "{percentage:3.0f}% {bar:24} {desc}"
        elif now - self._drawn < _DRAW_SECONDS and progress.files < progress.n_files:
            self._last = progress
            return
        self._last, self._drawn = progress, now
        self._bar.total, self._bar.n = progress.n_bytes, progress.bytes
        self._bar.set_description_str(described(progress, now - self._started))


def described(progress: Progress, seconds: float) -> str:
    """`12 of 500 files, 4,210 tokens/s, about 3 min left`; what is left follows from bytes, done and to do."""
    parts = [f"{progress.files:,} of {progress.n_files:,} files"] if progress.n_files else []
    if progress.tokens and seconds >= _MIN_SECONDS:
        parts.append(f"{progress.tokens / seconds:,.0f} tokens/s")
        if 0 < progress.bytes < progress.n_bytes:
            left = seconds * (progress.n_bytes - progress.bytes) / progress.bytes
            parts.append(f"about {duration(max(1, left))} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`2 h 5 min`, `3 min`, `40 s` or `0.3 s`."""
    if seconds >= _HOUR:
        return f"{int(seconds // _HOUR)} h {int(seconds % _HOUR // _MINUTE)} min"
    if seconds >= _MINUTE:
        return f"{round(seconds / _MINUTE)} min"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
