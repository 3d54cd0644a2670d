"""Tables of a run: scores by task and system, averages of groups, ratios to a baseline, and the cost of each saving."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pplx_bench.panels import BAR_INCHES, COLORS, OTHER_COLOR, bars, figure_of, finish, save
from pplx_bench.quality.groups import Groups
from pplx_bench.quality.systems import TERMS
from pplx_bench.results import Result
from pplx_bench.retrieval.metrics import LABELS
from pplx_bench.tables import ABSENT, LINE_WIDTH

_CELL_WIDTH = 9
_PANELS_PER_ROW = 4


@dataclass(frozen=True, slots=True)
class Column:
    """A system at a precision, a dimension (None: the model's own) and a context."""

    system: str
    model: str
    format: str | None
    precision: str
    dim: int | None
    context: str

    @property
    def head(self) -> tuple[str, str, str, str]:
        """The lines of the table head above this column."""
        precision = "" if self.precision == TERMS else self.precision
        context = {"off": "", "on": "+context", "title": "+title"}[self.context]
        return self.system, precision, f"{self.dim}d" if self.dim else "", context

    @property
    def label(self) -> str:
        """The name on one line: `nano int8 128d +context`."""
        return " ".join(filter(None, self.head))


@dataclass(frozen=True, slots=True)
class Scores:
    """One measure of every column and task, times 100."""

    columns: Sequence[Column]
    tasks: Sequence[str]
    cells: Mapping[tuple[Column, str], float]

    @classmethod
    def of(cls, results: Sequence[Result], measure: str) -> "Scores":
        """Return one measure of all results."""
        cells = {(_column(result), result["task"]): 100 * result["metrics"][measure] for result in results}
        columns = list(dict.fromkeys(column for column, _ in cells))
        return cls(columns, list(dict.fromkeys(result["task"] for result in results)), cells)

    def mean(self, column: Column, tasks: Sequence[str]) -> float | None:
        """Return the average over tasks, or None unless all of them were measured."""
        found = [self.cells[column, task] for task in tasks if (column, task) in self.cells]
        return sum(found) / len(found) if found and len(found) == len(tasks) else None


def report(results: Sequence[Result], groups: Groups, measures: Sequence[str], baseline: str) -> str:
    """Return all tables of a run, with ratios and costs for the first measure."""
    parts = []
    for i, measure in enumerate(measures):
        scores = Scores.of(results, measure)
        each_task = {task: (task,) for task in scores.tasks}
        for corner, rows in ((f"{LABELS[measure]} × 100", each_task), ("average", groups)):
            lines = [
                [name, *(_cell(scores.mean(c, tasks), ".2f") for c in scores.columns)] for name, tasks in rows.items()
            ]
            parts.append(_tables(corner, scores.columns, lines))
        if i == 0:
            named = groups or {"all tasks": scores.tasks}
            parts += [_ratios(scores, named, baseline), _costs(scores, named)]
    return "\n\n".join(filter(None, [*parts, _reading(results)]))


def draw(results: Sequence[Result], groups: Groups, measure: str, peers: Sequence[str], out: Path) -> None:
    """Draw a bar for each column in a panel for each group (or task), peers in gray."""
    scores = Scores.of(results, measure)
    means: dict[str, dict[Column, float]] = {}
    for name, tasks in (groups or {task: (task,) for task in scores.tasks}).items():
        found = {column: mean for column in scores.columns if (mean := scores.mean(column, tasks)) is not None}
        means |= {name: found} if found else {}
    models = list(dict.fromkeys(column.system for column in scores.columns if column.system not in peers))
    colors = {system: COLORS[i % len(COLORS)] for i, system in enumerate(models)}
    height = 0.8 + BAR_INCHES * max(map(len, means.values()))
    figure, panels = figure_of(len(means), height, n_columns=_PANELS_PER_ROW)
    for panel, (name, found) in zip(panels, means.items(), strict=True):
        labels = [f"{value:.1f}" for value in found.values()]
        shades = [colors.get(column.system, OTHER_COLOR) for column in found]
        bars(panel, [column.label for column in found], list(found.values()), labels, shades)
        panel.set_xlim(0, 115)
        finish(panel, name)
    figure.suptitle(f"{LABELS[measure]} × 100, higher is better", fontsize=9)
    save(figure, out)


def _column(row: Result) -> Column:
    dim = None if row["native"] else row["dim"]
    return Column(row["system"], row["model"], row["format"], row["precision"], dim, row["context"])


def _ratios(scores: Scores, named: Groups, baseline: str) -> str:
    """Return averages as a share of those of a peer without context."""
    reference = next((c for c in scores.columns if (c.system, c.context, c.dim) == (baseline, "off", None)), None)
    others = [column for column in scores.columns if column != reference]
    if reference is None or not others:
        return ""
    lines = []
    for name, tasks in named.items():
        of = scores.mean(reference, tasks)
        means = [scores.mean(column, tasks) if of else None for column in others]
        lines.append([name, *(_cell(None if mean is None else 100 * mean / (of or 1), ".1f", " %") for mean in means)])
    return _tables(f"÷ {reference.label}", others, lines)


def _costs(scores: Scores, named: Groups) -> str:
    """Return the points gained or lost by a precision, fewer dimensions, context or int8 weights, over shared tasks."""
    same = {replace(column, system=""): column for column in reversed(scores.columns)}
    lines = []
    for column in scores.columns:
        for other, name in _counterparts(column):
            found = same.get(replace(other, system=""))
            if found is None or found == column:
                continue
            pairs = [(scores.mean(column, tasks), scores.mean(found, tasks)) for tasks in named.values()]
            gains = [None if a is None or b is None else a - b for a, b in pairs]
            if any(gain is not None for gain in gains):
                lines.append([f"{column.label} − {name}", *(_cell(gain, "+.2f") for gain in gains)])
    return _table([["points", *named]], lines) if lines else ""


def _counterparts(column: Column) -> list[tuple[Column, str]]:
    """Return the columns to compare a column with, and how each differs from it."""
    found = []
    if column.precision not in ("float32", TERMS):
        found.append((replace(column, precision="float32"), "float32"))
    if column.dim is not None:
        found.append((replace(column, dim=None), "all dims"))
    if column.context != "off":
        found.append((replace(column, context="off"), "without context" if column.context == "on" else "without title"))
    if column.format and column.format.endswith("-int8"):
        full = f"{column.format.removesuffix('-int8')}-fp32"
        found.append((replace(column, format=full), f"{full} weights"))
    return found


def _reading(results: Sequence[Result]) -> str:
    """Return how many tokens each system read, how fast, and how many texts it truncated."""
    lines = []
    for system in dict.fromkeys(row["system"] for row in results):
        # One encoding serves all precisions and dimensions: count each task and context once.
        once = {(row["task"], row["context"]): row for row in results if row["system"] == system}.values()
        tokens, cut, windows = (sum(row["counts"][name] for row in once) for name in ("tokens", "texts_cut", "windows"))
        seconds = sum(row["seconds"] for row in once)
        parts = [f"{tokens:,} tokens in {seconds:,.0f} s ({tokens / seconds:,.0f} per second)"] if seconds else []
        parts += [f"{cut:,} texts truncated"] if cut else []
        parts += [f"{windows:,} windows of documents"] if windows else []
        if parts:
            lines.append(f"{system}: {', '.join(parts)}")
    return "\n".join(lines)


def _tables(corner: str, columns: Sequence[Column], lines: Sequence[Sequence[str]]) -> str:
    """Return a table, or several below each other if it is wider than a line."""
    if not lines:
        return ""
    heads = [["", *head] for head in zip(*(column.head for column in columns), strict=True)]
    heads[0][0] = corner
    label_width, widths = _widths([*heads, *lines])
    parts, start = [], 0
    while start < len(widths):
        stop = start + 1
        while stop < len(widths) and label_width + sum(widths[start : stop + 1]) <= LINE_WIDTH:
            stop += 1
        part = [[line[0], *line[1 + start : 1 + stop]] for line in [*heads, *lines]]
        parts.append(_table([head for head in part[: len(heads)] if any(head[1:])], part[len(heads) :]))
        start = stop
    return "\n\n".join(parts)


def _table(heads: Sequence[Sequence[str]], lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells below the lines of a head and a rule, the first column left-aligned, the others right."""
    label_width, widths = _widths([*heads, *lines])
    shown = [
        f"{line[0]:<{label_width}}{''.join(map(str.rjust, line[1:], widths))}".rstrip() for line in [*heads, *lines]
    ]
    return "\n".join([*shown[: len(heads)], "─" * (label_width + sum(widths)), *shown[len(heads) :]])


def _widths(lines: Sequence[Sequence[str]]) -> tuple[int, list[int]]:
    """Return the width of the labels and of each other column."""
    label, *cells = (max(map(len, column)) for column in zip(*lines, strict=True))
    return label + 1, [max(_CELL_WIDTH, width + 2) for width in cells]


def _cell(value: float | None, digits: str, unit: str = "") -> str:
    return ABSENT if value is None else f"{value:{digits}}{unit}"
