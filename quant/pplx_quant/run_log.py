"""The log of a run: JSON Lines, one row for each logged step, and the same values for TensorBoard."""

import json
import time
from pathlib import Path

from pplx_quant.errors import ConfigError


class RunLog:
    """Appends rows to a file. Rows after `last_step`, which an earlier, killed run left, are deleted first.

    With `tensorboard`, numbers are also written to the folder `tensorboard` next to the file, where TensorBoard hides
    the steps that a killed run left. Raises ConfigError if the package is not installed.
    """

    def __init__(self, path: Path, last_step: int, silent: bool = False, tensorboard: bool = False):
        self.path, self.silent, self.board = path, silent, None
        if not silent:
            kept = [line for line in self._lines() if json.loads(line)["step"] <= last_step]
            path.write_text("".join(kept))
        if tensorboard and not silent:
            self.board = _board(path.parent / "tensorboard", last_step)
        self.started = time.perf_counter()

    def write(self, step: int, **values: float | str) -> None:
        """Append one row: the step, the seconds since this process opened the log, and `values`."""
        if self.silent:
            return
        row = {"step": step, "seconds": round(time.perf_counter() - self.started, 1), **values}
        with self.path.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        for name, value in values.items():
            if self.board is not None and not isinstance(value, str):
                self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what TensorBoard has not received yet."""
        if self.board is not None:
            self.board.close()

    def _lines(self) -> list[str]:
        return self.path.read_text().splitlines(keepends=True) if self.path.exists() else []


def _board(folder: Path, last_step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("--tensorboard needs the package: pip install tensorboard") from error
    return SummaryWriter(str(folder), purge_step=last_step + 1)
