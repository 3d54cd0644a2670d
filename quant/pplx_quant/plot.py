"""Draw the loss curves of runs, one panel for each run. Requires matplotlib.

python -m pplx_quant plot RUN_DIR… --out FILE.svg
"""

import json
from dataclasses import dataclass
from pathlib import Path

from pplx_quant.errors import DataError
from pplx_quant.options import required


@dataclass(frozen=True)
class PlotConfig:
    """Options of `plot`."""

    runs: tuple[Path, ...] = required("Directories of runs.", positional="RUN_DIR")
    out: Path = required("Picture to write: .svg, .png or .pdf.")


def read_losses(run: Path) -> tuple[list[int], list[float]]:
    """Return the steps and losses in the log of a run. Raises DataError if there are none."""
    path = run / "log.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not the log of a run ({error})") from error
    rows = [row for row in rows if "loss" in row]
    if not rows:
        raise DataError(f"{path}: contains no loss yet; wait for the first --log-every steps")
    return [row["step"] for row in rows], [row["loss"] for row in rows]


def running_mean(values: list[float], share: float = 0.9) -> list[float]:
    """Return the exponential moving average, with bias correction for the first values."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = share * total + (1 - share) * value, share * weight + (1 - share)
        means.append(total / weight)
    return means


def plot(config: PlotConfig) -> None:
    """Write the picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    curves = [read_losses(run) for run in config.runs]
    size = 3.2 * len(curves), 2.6
    figure, panels = pyplot.subplots(1, len(curves), figsize=size, layout="constrained", squeeze=False)
    for run, (steps, losses), axes in zip(config.runs, curves, panels[0], strict=True):
        axes.plot(steps, losses, color="0.75", linewidth=0.8)
        axes.plot(steps, running_mean(losses), color="C0")
        axes.set_title(run.name)
        axes.set_xlabel("step")
    panels[0, 0].set_ylabel("loss")
    figure.savefig(config.out)
    pyplot.close(figure)
