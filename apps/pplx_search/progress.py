"""The progress bar of an indexing run (files, tokens per second, estimated time left), and its summary."""

import os
import sys
import time
from collections import deque
from types import TracebackType

from tqdm import tqdm

from pplx_search.console import say, shown_path
from pplx_search.indexer import Progress, Report

_MOST_MISSING = 5  # unreadable folders listed individually
_RATE_SECONDS, _LEFT_SECONDS = 2.0, 6.0  # minimum time before showing a rate, and an estimate
_PACE_SECONDS = 60.0  # the rate is averaged over this time
_DRAW_SECONDS = 0.1
_HOUR, _MINUTE = 3600, 60


class Bar:
    """A progress bar on stderr, drawn if that is a terminal. Always reports an interruption and how far it got."""

    def __init__(self, quiet: bool = False):
        self._bar = tqdm(
            total=0,
            desc="looking for files",
            disable=quiet or not sys.stderr.isatty(),
            leave=False,
            bar_format="{desc}",
        )
        self._drawn = 0.0
        self._last: Progress | None = None
        self._past: deque[tuple[float, Progress]] = deque()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
        if kind is KeyboardInterrupt:
            last = self._last
            far = f" at {last.files:,} of {last.n_files:,} files" if last is not None and last.n_files else ""
            say(f"interrupted{far}; what is indexed so far is searchable; run the command again to continue")

    def show(self, progress: Progress) -> None:
        """Update the bar with the current progress."""
        now = time.monotonic()
        if self._last is None:
            self._bar.bar_format = "{percentage:3.0f}% {bar:24} {desc}"
        elif now - self._drawn < _DRAW_SECONDS and progress.files < progress.n_files:
            self._last = progress
            return
        self._last, self._drawn = progress, now
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


def say_summary(report: Report, seconds: float, quiet: bool) -> None:
    """Print to stderr what a run did and how long it took. Unreadable folders are reported even with `quiet`."""
    for missing in report.missing[:_MOST_MISSING]:
        say(f"{shown_path(os.fsencode(missing.path))}: {missing.reason}; its files stay in the index")
    if len(report.missing) > _MOST_MISSING:
        say(f"and {len(report.missing) - _MOST_MISSING:,} more folders could not be read")
    if quiet:
        return
    counts = {
        "indexed": report.indexed + report.known,
        "unchanged": report.unchanged,
        "moved": report.moved,
        "removed": report.forgotten,
        "skipped": report.skipped,
        "failed": report.failed,
        "still being written": report.changing,
    }
    files = ", ".join(f"{n:,} {what}" for what, n in counts.items() if n)
    why = "; for details: pplx-search status --files" if report.failed or report.skipped or report.changing else ""
    say(f"{files or 'no files found'}, in {duration(seconds)}{why}")
