"""Pictures of benchmarks: rows of small panels, with matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pplx_edge.errors import MissingExtra

# fmt: off
COLORS = (
    "#1a7f5a", "#2f6db5", "#b5622f", "#7a4fb0", "#a03a52", "#5b6770", "#8a7a1f", "#c2569b", "#2a9aa8", "#d08a00",
)
# fmt: on
OTHER_COLOR = "#b8bec4"
PICTURES = (".svg", ".png", ".pdf")
BAR_INCHES = 0.26
_PANEL_INCHES = (3.6, 3.0)


def require_matplotlib() -> Any:
    """Return the class of figures. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("--plot", "bench") from error
    return Figure


def figure_of(
    n_panels: int, height: float = _PANEL_INCHES[1], width: float = _PANEL_INCHES[0], n_columns: int | None = None
) -> tuple[Any, Any]:
    """Return a figure and its panels, in rows of `n_columns` (default: one row), with the size of a panel in inches."""
    across = min(n_columns or n_panels, n_panels)
    down = -(-n_panels // across)
    figure = require_matplotlib()(figsize=(width * across, height * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for panel in panels[n_panels:]:
        panel.set_axis_off()
    return figure, panels[:n_panels]


def bars(
    panel: Any, names: Sequence[str], values: Sequence[float], labels: Sequence[str], colors: Any, *, axis: bool = False
) -> None:
    """Draw horizontal bars from top to bottom, each labeled with its value, with or without an axis below."""
    panel.bar_label(panel.barh(names, values, color=colors), labels, padding=2, fontsize=7)
    panel.invert_yaxis()
    if not axis:
        panel.set_xticks([])
        panel.spines["bottom"].set_visible(False)


def finish(panel: Any, title: str, below: str = "") -> None:
    """Add the title and the label of the axis below, and hide what is not needed."""
    panel.set_title(title, fontsize=9)
    panel.set_xlabel(below, fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=7)


def save(figure: Any, out: Path) -> None:
    """Write the figure; equal figures give equal files."""
    figure.savefig(out, dpi=150, metadata={"Date": None} if out.suffix == ".svg" else None)
