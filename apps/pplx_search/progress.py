"""The progress bar of an indexing run, and its summary."""

import os
from types import TracebackType

from pplx_kit import progress
from pplx_kit.progress import duration
from pplx_search.console import say, shown_path
from pplx_search.indexer import Report

_MOST_MISSING = 5  # unreadable folders listed individually


class Bar(progress.Bar):
    """A progress bar that reports an interruption and how far the run got, whether or not it is drawn."""

    def __init__(self, quiet: bool = False):
        super().__init__(quiet, "looking for files")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, traceback)
        if kind is KeyboardInterrupt:
            far = f" at {self.last.files:,} of {self.last.n_files:,} files" if self.last and self.last.n_files else ""
            say(f"interrupted{far}; what is indexed so far is searchable; run the command again to continue")


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
