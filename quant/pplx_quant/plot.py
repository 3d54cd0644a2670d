"""Loss curves of runs, one panel a run.

python -m pplx_quant.plot RUN_DIR… --out FILE.svg
"""

import argparse
import json
import sys
from pathlib import Path

from pplx_edge.errors import EdgeError
from pplx_quant.errors import DataError


def read_losses(run: Path) -> tuple[list[int], list[float]]:
    """Steps and losses of a run's log; DataError when it has none."""
    path = run / "log.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a run's log ({error})") from error
    rows = [row for row in rows if "loss" in row]
    if not rows:
        raise DataError(f"{path}: holds no loss yet; wait for the first --log-every steps")
    return [row["step"] for row in rows], [row["loss"] for row in rows]


def running_mean(values: list[float], share: float = 0.9) -> list[float]:
    """Exponential mean, corrected for its start."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = share * total + (1 - share) * value, share * weight + (1 - share)
        means.append(total / weight)
    return means


def draw(runs: list[Path], out: Path) -> None:
    """Write the picture; its format is that of the file's ending."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    curves = [read_losses(run) for run in runs]
    figure, panels = pyplot.subplots(1, len(runs), figsize=(3.2 * len(runs), 2.6), layout="constrained", squeeze=False)
    for run, (steps, losses), axes in zip(runs, curves, panels[0], strict=True):
        axes.plot(steps, losses, color="0.75", linewidth=0.8)
        axes.plot(steps, running_mean(losses), color="C0")
        axes.set_title(run.name)
        axes.set_xlabel("step")
    panels[0, 0].set_ylabel("loss")
    figure.savefig(out)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Draw; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pplx_quant.plot", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        draw(args.runs, args.out)
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
