"""`pplx-edge bench plot`: a picture of the results that `bench speed --json` wrote."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from pplx_bench.peers import OURS, PEERS
from pplx_edge.errors import InputError, MissingExtra

_FIRST_COLOUR, _OTHER_COLOUR = "#1a7f5a", "#b8bec4"
_PANEL_INCHES = (2.6, 2.6)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("results", type=Path, metavar="FILE", help="what `bench speed --json` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="picture to write: .svg, .png or .pdf")


def run(args: Namespace) -> int:
    """Draws the newest run of the file; the exit status."""
    draw(latest_run(args.results), args.out)
    print(args.out)
    return 0


def latest_run(path: Path) -> dict[str, dict[str, float]]:
    """Tokens a second of the newest run in a file: row to peer to rate, both in the order they were measured.

    Raises InputError when the file holds no speed results.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON Lines ({error})") from error
    speed = [line for line in lines if line.get("benchmark") == "speed" and "tokens_per_second" in line]
    if not speed:
        raise InputError(f"{path}: no speed results in it; make some: pplx-edge bench speed --json {path}")
    newest = max(line["time"] for line in speed)
    rows: dict[str, dict[str, float]] = {}
    for line in speed:
        if line["time"] == newest:
            rows.setdefault(line["row"], {})[line["peer"]] = line["tokens_per_second"]
    return rows


def draw(rows: dict[str, dict[str, float]], out: Path) -> None:
    """Writes one panel of horizontal bars a row, ours first. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("bench plot", "bench") from error
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * len(rows), height), layout="constrained")
    panels: Any = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    peers = list(dict.fromkeys(peer for rates in rows.values() for peer in rates))
    for panel, (row, rates) in zip(panels, rows.items(), strict=True):
        heights = [rates.get(peer, 0.0) for peer in peers]
        colours = [_FIRST_COLOUR if peer == OURS else _OTHER_COLOUR for peer in peers]
        bars = panel.barh([PEERS[peer].label for peer in peers], heights, color=colours)
        panel.bar_label(bars, [f"{rate:,.0f}" if rate else "–" for rate in heights], padding=2, fontsize=7)
        panel.set_title(row, fontsize=9)
        panel.set_xlim(0, 1.3 * max(heights))
        panel.set_xticks([])
        panel.spines[["top", "right", "bottom"]].set_visible(False)
        panel.tick_params(labelsize=8)
    panels[0].invert_yaxis()
    figure.suptitle("tokens a second, higher is better", fontsize=9)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
