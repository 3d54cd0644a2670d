"""What the pictures of all benchmarks are drawn with: rows of small panels."""

from pathlib import Path
from typing import Any

from pplx_edge.errors import MissingExtra

COLOURS = ("#1a7f5a", "#2f6db5", "#b5622f", "#7a4fb0", "#a03a52", "#5b6770")
OTHER_COLOUR = "#b8bec4"
BAR_INCHES = 0.26
_PANEL_INCHES = (3.6, 3.0)


def figure_of(n_panels: int, height: float = _PANEL_INCHES[1], width: float = _PANEL_INCHES[0]) -> tuple[Any, Any]:
    """A figure, and so many panels side by side; inches are of a panel. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("--plot", "bench") from error
    figure = Figure(figsize=(width * n_panels, height), layout="constrained")
    return figure, figure.subplots(1, n_panels, squeeze=False)[0]


def finish(panel: Any, title: str, below: str = "") -> None:
    """Title, label of the axis below, and as few lines as can be."""
    panel.set_title(title, fontsize=9)
    panel.set_xlabel(below, fontsize=8)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=7)


def save(figure: Any, out: Path) -> None:
    """Writes it; the same figures give the same file."""
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
