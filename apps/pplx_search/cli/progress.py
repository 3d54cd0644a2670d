"""The bar of an indexing run: files, tokens a second, and an honest guess of what is left."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

from pplx_search.indexing import Progress

_MIN_SECONDS = 2.0  # before a rate is worth telling
_HOUR, _MINUTE = 3600, 60


class Bar:
    """Drawn on stderr when that is a terminal; otherwise it says nothing."""

    def __init__(self, quiet: bool = False):
        self._bar = tqdm(
            total=0,
            unit="B",
            unit_scale=True,
            disable=quiet or not sys.stderr.isatty(),
            leave=False,
            bar_format="{percentage:3.0f}%|{bar:24}| {postfix}",
        )
        self._started = time.monotonic()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def show(self, progress: Progress) -> None:
        """Draws how far the run is."""
        self._bar.total = progress.n_bytes
        self._bar.n = progress.bytes
        self._bar.set_postfix_str(described(progress, time.monotonic() - self._started), refresh=False)
        self._bar.update(0)


def described(progress: Progress, seconds: float) -> str:
    """`12 of 500 files, 4,210 tokens/s, about 3 min left`; what is left follows from bytes of files, done and to do."""
    text = f"{progress.files:,} of {progress.n_files:,} files"
    if seconds < _MIN_SECONDS:
        return text
    text += f", {progress.tokens / seconds:,.0f} tokens/s"
    if not progress.bytes or progress.bytes >= progress.n_bytes:
        return text
    return f"{text}, about {duration(seconds * (progress.n_bytes - progress.bytes) / progress.bytes)} left"


def duration(seconds: float) -> str:
    """`2 h 5 min`, `3 min` or `40 s`."""
    if seconds >= _HOUR:
        return f"{int(seconds // _HOUR)} h {int(seconds % _HOUR // _MINUTE)} min"
    if seconds >= _MINUTE:
        return f"{round(seconds / _MINUTE)} min"
    return f"{max(1, round(seconds))} s"
