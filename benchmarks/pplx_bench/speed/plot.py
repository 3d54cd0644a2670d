"""`pplx-edge bench plot`: a picture of the results that `bench speed --json` wrote."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from pplx_bench.options import require_writable
from pplx_bench.panels import COLORS, OTHER_COLOR, PICTURES, bars, figure_of, finish, save
from pplx_bench.speed.peers import FOUR_BITS, GRAPH, OURS, PEERS
from pplx_bench.tables import ABSENT
from pplx_edge.errors import InputError

_PANEL_INCHES = 2.6


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "results", type=Path, metavar="RESULTS", help="The .jsonl file that `bench speed --json` wrote."
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="Picture to write: .svg, .png or .pdf.")


def run(args: Namespace) -> int:
    """Draw the newest run of the file, print the name of the picture and return 0."""
    require_writable(args.out, *PICTURES)
    draw(latest_run(args.results), args.out)
    print(args.out)
    return 0


def latest_run(path: Path) -> dict[str, dict[str, float]]:
    """Return the tokens per second of the newest run in a file, by row and then by peer, in the order of the run.

    Raises InputError if the file has no results of speed.
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
    """Draw a panel of horizontal bars for each row, pplx-edge first. Raises MissingExtra without matplotlib."""
    figure, panels = figure_of(len(rows), _PANEL_INCHES, _PANEL_INCHES)
    peers = list(dict.fromkeys(peer for rates in rows.values() for peer in rates))
    colors = [COLORS[0] if peer in (OURS, FOUR_BITS, GRAPH) else OTHER_COLOR for peer in peers]
    for panel, (row, rates) in zip(panels, rows.items(), strict=True):
        values = [rates.get(peer, 0.0) for peer in peers]
        texts = [f"{rate:,.0f}" if rate else ABSENT for rate in values]
        bars(panel, [PEERS[peer].label for peer in peers], values, texts, colors)
        panel.set_xlim(0, 1.3 * max(values))
        finish(panel, row)
        panel.tick_params(labelleft=panel is panels[0])
    figure.suptitle("tokens per second, higher is better", fontsize=9)
    save(figure, out)
