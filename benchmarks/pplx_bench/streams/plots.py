"""Pictures of `bench stream`: memory and pace by size, fidelity and cost by margin, retrieval by way of reading."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pplx_bench.panels import BAR_INCHES, COLORS, OTHER_COLOR, figure_of, finish, save
from pplx_bench.streams.quality import BOOKS, MAIN, TITLED
from pplx_bench.streams.sizes import STREAM

Lines = Sequence[Mapping[str, Any]]
_WIDE = 10  # times, from which on heights are drawn on a logarithmic axis
_HEADROOM = 1.1


def draw_size(results: Lines, out: Path) -> None:
    """Peak memory, pace and time to the first vector against the length of the document, a line a method."""
    done = [result for result in results if "seconds" in result]
    figure, panels = figure_of(3)
    names = list(dict.fromkeys((result["label"], result["method"]) for result in done))
    values: tuple[tuple[str, Callable[[Mapping[str, Any]], float]], ...] = (
        ("peak memory, GB", lambda result: result["rss"] / 1e9),
        ("tokens a second", lambda result: result["tokens_per_second"]),
        ("seconds to the first vector", lambda result: result["first_seconds"]),
    )
    for panel, (title, value) in zip(panels, values, strict=True):
        for i, (label, method) in enumerate(names):
            own = [result for result in done if (result["label"], result["method"]) == (label, method)]
            style = "-o" if method == STREAM else "--s"
            places, heights = [result["tokens"] for result in own], [value(result) for result in own]
            panel.plot(places, heights, style, color=COLORS[i % len(COLORS)], label=f"{label}, {method}", markersize=3)
        panel.set_xscale("log")
        _scale(panel, [value(result) for result in done])
        finish(panel, title, "tokens of the document")
    _legend(figure, panels)
    save(figure, out)


def _scale(panel: Any, heights: Sequence[float]) -> None:
    """From zero, or logarithmic where heights are more than an order of magnitude apart."""
    if heights and max(heights) > _WIDE * min(heights):
        panel.set_yscale("log")
    else:
        panel.set_ylim(0, _HEADROOM * max(heights, default=1))


def draw_fidelity(results: Lines, out: Path) -> None:
    """Mean cosine to the full context, and tokens computed a token, against the margin, a line a window."""
    windowed = [result for result in results if result["margin"] is not None]
    margins = sorted({result["margin"] for result in windowed})
    figure, panels = figure_of(3)
    values: tuple[tuple[str, Callable[[Mapping[str, Any]], float]], ...] = (
        ("mean cosine to the full context", lambda result: result["cosine_mean"]),
        ("int8 codes that moved, %", lambda result: 100 * result["codes_moved"]),
        ("tokens computed for each token", lambda result: result["tokens_computed"] / result["tokens"]),
    )
    for panel, (title, value) in zip(panels, values, strict=True):
        for i, window in enumerate(dict.fromkeys(result["window"] for result in windowed)):
            own = [result for result in windowed if result["window"] == window]
            places = [margins.index(result["margin"]) for result in own]
            heights = [value(result) for result in own]
            panel.plot(places, heights, "-o", color=COLORS[i % len(COLORS)], label=f"window {window}", markersize=3)
        panel.set_xticks(range(len(margins)), [str(margin) for margin in margins])
        finish(panel, title, "margin, tokens")
    _legend(figure, panels)
    save(figure, out)


def draw_quality(results: Lines, out: Path) -> None:
    """nDCG@10 of every way of reading, a panel a task."""
    tasks = list(dict.fromkeys(result["task"] for result in results))
    bars = max(sum(result["task"] == task for result in results) for task in tasks)
    figure, panels = figure_of(len(tasks), BAR_INCHES * bars + 0.8)
    for panel, task in zip(panels, tasks, strict=True):
        own = [result for result in results if result["task"] == task]
        scores = [100 * (r["metrics"][TITLED] if task == BOOKS else r["metrics"])[MAIN] for r in own]
        colors = [COLORS[0] if result["way"].startswith(STREAM) else OTHER_COLOR for result in own]
        drawn = panel.barh([result["way"] for result in own], scores, color=colors)
        panel.bar_label(drawn, [f"{score:.1f}" for score in scores], padding=2, fontsize=7)
        panel.set_xlim(0, 1.2 * max(scores) or 1)
        panel.set_xticks([])
        panel.invert_yaxis()
        finish(panel, f"{task}, nDCG@10 × 100")
        panel.spines["bottom"].set_visible(False)
    save(figure, out)


def _legend(figure: Any, panels: Any) -> None:
    """One legend for all panels, below them, where it hides no line."""
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7, frameon=False
    )
