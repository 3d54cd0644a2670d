"""A bar plot of a run: a panel a group (or a task), a bar a column."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pplx_bench.quality.encoders import EXTRA
from pplx_bench.quality.groups import Groups
from pplx_bench.quality.report import LABELS, Column, Scores
from pplx_bench.quality.rows import Row
from pplx_edge.errors import MissingExtra

_PEER_COLOUR = "#b8bec4"
_MODEL_COLOURS = ("#1a7f5a", "#2f6db5", "#b5622f", "#7a4fb0")
_PANELS_PER_ROW = 4
_PANEL_WIDTH, _BAR_HEIGHT, _HEAD_HEIGHT = 3.2, 0.26, 0.7


def draw(rows: Sequence[Row], groups: Groups, measure: str, peers: Sequence[str], out: Path) -> None:
    """Writes the picture: .svg, .png or .pdf. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("--plot", EXTRA) from error
    scores = Scores.of(rows, measure)
    means = {name: _means(scores, tasks) for name, tasks in (groups or {t: (t,) for t in scores.tasks}).items()}
    means = {name: found for name, found in means.items() if found}
    across = min(_PANELS_PER_ROW, len(means))
    down = -(-len(means) // across)
    height = down * (_HEAD_HEIGHT + _BAR_HEIGHT * max(len(found) for found in means.values()))
    figure = Figure(figsize=(_PANEL_WIDTH * across, height + 0.3), layout="constrained")
    panels: Any = figure.subplots(down, across, squeeze=False).ravel()
    colours = _colours(scores.columns, peers)
    for panel, (name, found) in zip(panels, means.items(), strict=False):
        bars = panel.barh([c.label for c in found], list(found.values()), color=[colours[c.system] for c in found])
        panel.bar_label(bars, [f"{value:.1f}" for value in found.values()], padding=2, fontsize=7)
        panel.set_title(name, fontsize=9)
        panel.set_xlim(0, 115)
        panel.set_xticks([])
        panel.spines[["top", "right", "bottom"]].set_visible(False)
        panel.tick_params(labelsize=7)
        panel.invert_yaxis()
    for panel in panels[len(means) :]:
        panel.set_axis_off()
    figure.suptitle(f"{LABELS[measure]} × 100, higher is better", fontsize=9)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


def _means(scores: Scores, tasks: Sequence[str]) -> dict[Column, float]:
    """The columns that have all of the tasks, and their averages."""
    found = {column: scores.mean(column, tasks) for column in scores.columns}
    return {column: mean for column, mean in found.items() if mean is not None}


def _colours(columns: Sequence[Column], peers: Sequence[str]) -> dict[str, str]:
    """A colour a system, grey for peers."""
    systems = list(dict.fromkeys(column.system for column in columns))
    models = [system for system in systems if system not in peers]
    return dict.fromkeys(systems, _PEER_COLOUR) | {
        system: _MODEL_COLOURS[i % len(_MODEL_COLOURS)] for i, system in enumerate(models)
    }
