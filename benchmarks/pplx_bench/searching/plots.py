"""The picture of `bench search --what scale`: time and recall of a query, beside others."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pplx_bench.panels import BAR_INCHES, COLORS, OTHER_COLOR, figure_of, finish, save

_WIDTH_INCHES = 7.0
_ROOM = 4.0  # times the longest bar, for what stands behind it


def draw_scale(results: Sequence[Mapping[str, Any]], ours: str, out: Path) -> None:
    """Median time of a query among all vectors, on a logarithmic axis, and the share of the ten nearest it finds."""
    rows = [row for row in results if row.get("recall") is not None and "documents" not in row["what"]]
    times = [1000 * float(np.median(row["seconds"])) for row in rows]
    figure, (panel,) = figure_of(1, BAR_INCHES * len(rows) + 0.8, _WIDTH_INCHES)
    names = [f"{row['system']}: {row['what']}" for row in rows]
    colors = [COLORS[0] if row["system"] == ours else OTHER_COLOR for row in rows]
    drawn = panel.barh(names, times, color=colors)
    labels = [f"{time:,.1f} ms, recall {row['recall']:.3f}" for time, row in zip(times, rows, strict=True)]
    panel.bar_label(drawn, labels, padding=2, fontsize=7)
    panel.set_xscale("log")
    panel.set_xlim(min(times) / 2, _ROOM * max(times))
    panel.invert_yaxis()
    finish(panel, f"a query among {rows[0]['chunks']:,} vectors of {rows[0]['dim']} dimensions", "milliseconds, median")
    save(figure, out)
