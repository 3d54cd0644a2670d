"""The card as a picture: size against drift, and the drift layer by layer."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pplx_bench.fidelity.candidates import Candidate
from pplx_bench.fidelity.cards import Card
from pplx_bench.fidelity.report import EMBEDDING, FINAL_NORM, LEAST_DRIFT, MEGABYTE, drifts
from pplx_bench.options import require_writable
from pplx_bench.panels import COLORS, PICTURES, figure_of, finish, require_matplotlib, save

_MARKERS = "osD^vPX*"
_GREY = "#8a9198"
_WIDTH_INCHES, _HEIGHT_INCHES = 4.6, 3.6
_LABEL_POINTS, _LABEL_GAP = 7.5, 7
_MAX_TICKS = 14
_HEADROOM = 6  # for labels that are moved up


def require_plotting(path: Path) -> None:
    """Raises InputError for a name that no picture can have, MissingExtra without matplotlib."""
    require_writable(path, *PICTURES)
    require_matplotlib()


def draw(cards: Sequence[Card], sample_name: str, out: Path) -> None:
    """Writes the picture. The first card is the reference's."""
    save(picture(cards, sample_name), out)


def picture(cards: Sequence[Card], sample_name: str) -> Any:
    """The figure: a panel of sizes and drifts, and one of drift by layer where manifests know it."""
    reference, others = cards[0], cards[1:]
    layered = [card.candidate for card in cards if max(drifts(card.candidate).values(), default=0.0) >= LEAST_DRIFT]
    figure, panels = figure_of(2 if layered else 1, _HEIGHT_INCHES, _WIDTH_INCHES)
    names = _short_labels([card.candidate for card in cards])
    styles = {
        card.candidate.label: (COLORS[i % len(COLORS)], _MARKERS[i % len(_MARKERS)]) for i, card in enumerate(others)
    } | {reference.candidate.label: (_GREY, "o")}
    _draw_sizes(panels[0], reference, others, names, styles)
    ends = _draw_layers(panels[1], layered, styles) if layered else []
    title = f"Drift from {reference.candidate.label} on {reference.n_texts:,} texts ({sample_name}); lower is better"
    figure.suptitle(title, fontsize=10)
    points = [(card.candidate.label, _x(card.candidate), _mean_drift(card)) for card in others]
    figure.draw_without_rendering()  # so that places in the panels are known
    for panel, places in zip(panels, (points, ends), strict=False):
        _label_points(panel, places, names, styles)
    return figure


def _draw_sizes(
    panel: Any, reference: Card, others: Sequence[Card], names: Mapping[str, str], styles: Mapping[str, tuple[str, str]]
) -> None:
    size = _x(reference.candidate)
    for card in others:
        color, marker = styles[card.candidate.label]
        panel.plot(_x(card.candidate), _mean_drift(card), marker, color=color, markersize=6)
    panel.axvline(size, color=_GREY, linestyle=":", linewidth=1)
    _log_scale(panel, [_mean_drift(card) for card in others])
    widest = max(size, *(_x(card.candidate) for card in others))
    panel.set_xlim(0, 1.25 * widest)  # room for the labels on the right
    panel.annotate(
        f"{names[reference.candidate.label]} (reference)",
        (size, 0.02),
        xycoords=("data", "axes fraction"),
        xytext=(-4, 0),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="bottom",
        fontsize=_LABEL_POINTS,
        color=_GREY,
    )
    _finish(panel, "size and drift", "weights and graph, MB", "1 − mean cosine")


def _draw_layers(
    panel: Any, candidates: Sequence[Candidate], styles: Mapping[str, tuple[str, str]]
) -> list[tuple[str, float, float]]:
    """Label and end of each line."""
    stages = list(max((drifts(candidate) for candidate in candidates), key=len))
    ends = []
    for candidate in candidates:
        color, marker = styles[candidate.label]
        values = [_floored(value) for value in drifts(candidate).values()]
        places = [stages.index(stage) for stage in drifts(candidate)]
        panel.plot(places, values, f"-{marker}", color=color, markersize=3.5, linewidth=1.2)
        ends.append((candidate.label, places[-1], values[-1]))
    _log_scale(panel, [value for candidate in candidates for value in drifts(candidate).values()])
    panel.set_xlim(-0.04 * len(stages), 1.25 * len(stages))  # room for the labels on the right
    ticks = _ticks(len(stages))
    shown = {EMBEDDING: "emb.", FINAL_NORM: "norm"}
    panel.set_xticks(ticks, [shown.get(stages[i], stages[i].removeprefix("layer ")) for i in ticks])
    title = "where it arises (probe texts, against full precision)"
    _finish(panel, title, "after the embedding, each layer, the final norm", "1 − least cosine")
    return ends


def _ticks(n_stages: int) -> list[int]:
    """The first and the last stage, and layers between them, not too many and none too close to those two."""
    last, step = n_stages - 1, -(-n_stages // _MAX_TICKS)
    layers = [i for i in range(1, last) if (i - 1) % step == 0 and (step == 1 or step < i <= last - step)]
    return [0, *layers, last]


def _label_points(
    panel: Any,
    points: Sequence[tuple[str, float, float]],
    names: Mapping[str, str],
    styles: Mapping[str, tuple[str, str]],
) -> None:
    """Names beside their points, moved apart where they would lie on each other."""
    to_points = 72 / panel.figure.dpi
    placed: list[tuple[float, float, float]] = []  # left, right and height of labels that are there, in points
    for label, x, y in sorted(points, key=lambda point: point[2]):
        across, up = (to_points * value for value in panel.transData.transform((x, y)))
        left, right = across + _LABEL_GAP, across + _LABEL_GAP + 0.6 * _LABEL_POINTS * len(names[label])
        height = up
        for other_left, other_right, other in sorted(placed, key=lambda place: place[2]):
            if left < other_right and other_left < right and abs(height - other) < 1.3 * _LABEL_POINTS:
                height = other + 1.3 * _LABEL_POINTS
        placed.append((left, right, height))
        panel.annotate(
            names[label],
            (x, y),
            xytext=(_LABEL_GAP, height - up),
            textcoords="offset points",
            va="center",
            fontsize=_LABEL_POINTS,
            color=styles[label][0],
        )


def _log_scale(panel: Any, values: Sequence[float]) -> None:
    """A logarithmic axis over whole decades around the values."""
    shown = [_floored(value) for value in values]
    low, high = math.floor(math.log10(min(shown) / 1.5)), math.ceil(math.log10(_HEADROOM * max(shown)))
    panel.set_yscale("log")
    panel.set_ylim(10.0**low, 10.0**high)
    panel.tick_params(which="minor", labelleft=False)


def _finish(panel: Any, title: str, below: str, beside: str) -> None:
    finish(panel, title, below)
    panel.set_ylabel(beside, fontsize=8)
    panel.grid(axis="y", color="#e6e8ea", linewidth=0.6)
    panel.set_axisbelow(True)


def _short_labels(candidates: Sequence[Candidate]) -> dict[str, str]:
    """Labels without the model that all of them name: `onnx-int8` for `nano@onnx-int8`."""
    models = {candidate.label.rpartition("@")[0] for candidate in candidates}
    if len(models) > 1 or models == {""}:
        return {candidate.label: candidate.label for candidate in candidates}
    return {candidate.label: candidate.label.rpartition("@")[2] for candidate in candidates}


def _x(candidate: Candidate) -> float:
    return candidate.n_bytes / MEGABYTE


def _mean_drift(card: Card) -> float:
    return _floored(1 - card.parity.mean_cosine if card.parity else 0.0)


def _floored(value: float) -> float:
    return max(value, LEAST_DRIFT)
