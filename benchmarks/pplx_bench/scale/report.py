"""Tables and pictures of `bench scale`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pplx_bench.panels import COLORS, figure_of, finish, save
from pplx_bench.tables import ABSENT, table

Lines = Sequence[Mapping[str, Any]]
LEAST_EFFICIENCY = 0.85  # of actors against processes
_LABEL_WIDTH = 52


def pool_table(results: Lines) -> str:
    """Return tokens per second of both, and their ratio."""
    lines = []
    for result in results:
        rate = result["tokens"] / result["seconds"]
        lines.append([f"{result['workers']} {result['what']}", f"{rate:,.0f}", f"{result['seconds']:.1f}"])
    equal = "codes are equal" if results[-1]["equal"] else "CODES DIFFER"
    note = f"actors / processes: {_efficiency(results):.3f} (at least {LEAST_EFFICIENCY}); {equal}"
    return f"{table(['', 'tokens/s', 's'], lines)}\n\n{note}"


def pool_passed(results: Lines) -> bool:
    """Return whether the codes are equal and the actors fast enough."""
    return bool(results[-1]["equal"]) and _efficiency(results) >= LEAST_EFFICIENCY


def kills_table(results: Lines) -> str:
    """Return what was killed in each run, and whether its rows were right."""
    head = ["run", "actors", "nodes", "rows", "complete", "unique", "equal", "s"]
    lines = [[str(r["run"]), *(_shown(r[name]) for name in head[1:-1]), f"{r['seconds']:.0f}"] for r in results]
    actors, nodes = (sum(result[name] for result in results) for name in ("actors", "nodes"))
    return f"{table(head, lines, 6)}\n\nkilled: {actors} actors, {nodes} nodes"


def kills_passed(results: Lines) -> bool:
    """Return whether the rows of every run were complete, unique and equal."""
    return all(result[name] for result in results for name in ("complete", "unique", "equal"))


def memory_table(results: Lines) -> str:
    """Return the memory of the driver over each corpus."""
    head = ["text GB", "rows", "MB/s", "before MB", "first tenth MB", "last tenth MB", "peak MB"]
    lines = [
        [
            f"{r['bytes'] / 1e9:.2f}",
            f"{r['rows']:,}",
            f"{r['bytes'] / 1e6 / r['seconds']:.1f}",
            *(f"{r[name] / 1e6:,.0f}" for name in ("before", "first", "last", "peak")),
        ]
        for r in results
    ]
    return table(head, lines, 9)


def engine_table(results: Lines) -> str:
    """Return recall and times of each kind of search."""
    lines = []
    for result in results:
        p50, p95 = 1000 * np.percentile(result["seconds"], [50, 95])
        cells = [f"{p50:,.1f}", f"{p95:,.1f}", f"{result['recall']:.3f}"]
        lines.append([f"{result['system']}: {result['what']}", *cells])
    about = results[0]
    title = f"{about['vectors']:,} vectors of {about['dim']} dimensions"
    last = results[-1]
    note = ""
    if "bytes" in last:
        note = (
            f"\n\nLanceDB: written in {last['write_seconds']:.1f} s, indexed in {last['index_seconds']:.1f} s, "
            f"{last['bytes'] / 1e6:,.0f} MB"
        )
    return f"{title}\n\n{table(['', 'p50 ms', 'p95 ms', 'recall@10'], lines, _LABEL_WIDTH + 10)}{note}"


def cost_table(results: Lines) -> str:
    """Return hours, dollars and bytes."""
    lines = []
    for result in results:
        if "hours" in result:
            dollars = ABSENT if result["dollars"] is None else f"{result['dollars']:,.0f}"
            lines.append(
                [result["what"], f"{result['tokens_per_second']:,.0f}", f"{result['hours']:,.0f}", dollars, ABSENT]
            )
        else:
            lines.append([result["what"], ABSENT, ABSENT, ABSENT, f"{result['bytes'] / 1e9:,.0f}"])
    return table(["", "tokens/s", "hours", "dollars", "GB"], lines)


def simulation_table(results: Lines) -> str:
    """Return the time of each scenario."""
    head = ["", "best h", "hours", "efficiency", "lost", "largest block"]
    lines = [
        [
            r["scenario"],
            f"{r['best_hours']:.2f}",
            f"{r['hours']:.2f}",
            f"{r['efficiency']:.3f}",
            f"{r['lost']:.1%}",
            f"{r['largest']:.0f} ×",
        ]
        for r in results
    ]
    return table(head, lines, 26)


def draw_simulation(results: Lines, out: Path) -> None:
    """Draw the share that is done over time, for each scenario."""
    figure, (panel,) = figure_of(1, 3.4, 6.4)
    for result, color in zip(results, COLORS, strict=False):
        hours, done = zip(*result["curve"], strict=True)
        panel.plot(hours, done, color=color, label=result["scenario"], linewidth=1.4)
    panel.legend(fontsize=7, frameon=False, loc="lower right")
    panel.set_ylim(0, 1.02)
    panel.set_ylabel("share of the tokens that is done", fontsize=8)
    finish(panel, "simulated pipeline", "hours")
    save(figure, out)


def _efficiency(results: Lines) -> float:
    seconds = {result["what"]: result["seconds"] for result in results}
    return seconds["processes"] / seconds["actors"]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:,}"
