"""The log of a run: JSON Lines, one row for each logged step."""

import json
import time
from pathlib import Path


class RunLog:
    """Appends rows to a file. Rows after `last_step`, which an earlier, killed run left, are deleted first."""

    def __init__(self, path: Path, last_step: int, silent: bool = False):
        self.path, self.silent = path, silent
        if not silent:
            kept = [line for line in self._lines() if json.loads(line)["step"] <= last_step]
            path.write_text("".join(kept))
        self.started = time.perf_counter()

    def write(self, step: int, **values: float | str) -> None:
        """Append one row: the step, the seconds since this process opened the log, and `values`."""
        if self.silent:
            return
        row = {"step": step, "seconds": round(time.perf_counter() - self.started, 1), **values}
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")

    def _lines(self) -> list[str]:
        return self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
