"""The tables of a run: tasks by systems, averages of groups, their ratio to a baseline, and what each saving costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pplx_bench.quality.groups import Groups
from pplx_bench.quality.metrics import MEASURES
from pplx_bench.quality.rows import Row
from pplx_bench.quality.systems import TERMS

LABELS = dict(zip(MEASURES, ("nDCG@10", "recall@10", "recall@100", "MRR@10"), strict=True))
ALL = "all tasks"
_ABSENT = "–"
_LINE_WIDTH, _CELL_WIDTH = 118, 9


@dataclass(frozen=True, slots=True)
class Column:
    """A system at a precision, a dimension (None: native) and a context."""

    system: str
    model: str
    format: str | None
    precision: str
    dim: int | None
    context: str

    @property
    def label(self) -> str:
        """On one line: `nano int8 128d +context`."""
        return " ".join(part for part in self.head if part)

    @property
    def head(self) -> tuple[str, str, str, str]:
        """On the lines of a table's head."""
        precision = "" if self.precision == TERMS else self.precision
        context = {"off": "", "on": "+context", "title": "+title"}[self.context]
        return self.system, precision, f"{self.dim}d" if self.dim else "", context


@dataclass(frozen=True, slots=True)
class Scores:
    """One measure of every column and task, times 100."""

    columns: tuple[Column, ...]
    tasks: tuple[str, ...]
    cells: Mapping[tuple[Column, str], float]

    @classmethod
    def of(cls, rows: Sequence[Row], measure: str) -> "Scores":
        """The scores of a run."""
        cells = {(column_of(row), row.task): 100 * row.metrics[measure] for row in rows}
        columns = tuple(dict.fromkeys(column for column, _ in cells))
        return cls(columns, tuple(dict.fromkeys(row.task for row in rows)), cells)

    def mean(self, column: Column, tasks: Sequence[str]) -> float | None:
        """Average over tasks, None unless all of them are there."""
        found = [self.cells[column, task] for task in tasks if (column, task) in self.cells]
        return sum(found) / len(found) if found and len(found) == len(tasks) else None


def column_of(row: Row) -> Column:
    """The column that a result stands in."""
    return Column(row.system, row.model, row.format, row.precision, None if row.native else row.dim, row.context)


def quality_report(rows: Sequence[Row], groups: Groups, measures: Sequence[str], baseline: str | None) -> str:
    """All tables of a run, those of the first measure with ratios and costs."""
    parts = []
    for i, measure in enumerate(measures):
        scores = Scores.of(rows, measure)
        parts.append(_tables(f"{LABELS[measure]} × 100", scores.columns, _task_lines(scores)))
        if groups:
            parts.append(_tables("average", scores.columns, _group_lines(scores, groups)))
        if i == 0:
            parts += [_ratios(scores, groups, baseline), _costs(scores, groups)]
    parts.append(_reading(rows))
    return "\n\n".join(part for part in parts if part)


def _task_lines(scores: Scores) -> list[list[str]]:
    return [[task, *(_cell(scores.cells.get((column, task))) for column in scores.columns)] for task in scores.tasks]


def _group_lines(scores: Scores, groups: Groups) -> list[list[str]]:
    lines = []
    for name, tasks in groups.items():
        lines.append([name, *(_cell(scores.mean(column, tasks)) for column in scores.columns)])
    return lines


def _ratios(scores: Scores, groups: Groups, baseline: str | None) -> str:
    """Averages of groups (of all tasks without groups) as a share of a peer's, read alone."""
    reference = next((c for c in scores.columns if c.system == baseline and c.context == "off" and c.dim is None), None)
    others = [column for column in scores.columns if column != reference]
    if reference is None or not others:
        return ""
    lines = []
    for name, tasks in (groups or {ALL: scores.tasks}).items():
        of = scores.mean(reference, tasks)
        ratios = [
            (found / of if (found := scores.mean(column, tasks)) is not None and of else None) for column in others
        ]
        lines.append([name, *(_ABSENT if ratio is None else f"{100 * ratio:.1f} %" for ratio in ratios)])
    return _tables(f"÷ {reference.label}", others, lines)


def _costs(scores: Scores, groups: Groups) -> str:
    """Points lost or won by a precision, by fewer dimensions, by context and by int8 weights, over shared tasks."""
    named = groups or {ALL: scores.tasks}
    lines = []
    for column in scores.columns:
        for other, name in _counterparts(column):
            other = next((c for c in scores.columns if replace(c, system="") == replace(other, system="")), None)
            if other is not None and other != column:
                gains = [_gain(scores, column, other, tasks) for tasks in named.values()]
                lines.append([f"{column.label} − {name}", *gains])
    if not any(any(cell != _ABSENT for cell in line[1:]) for line in lines):
        return ""
    return table([["points", *named]], [line for line in lines if any(cell != _ABSENT for cell in line[1:])])


def _counterparts(column: Column) -> list[tuple[Column, str]]:
    """What a column is compared with, and how that differs from it."""
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


def _gain(scores: Scores, column: Column, other: Column, tasks: Sequence[str]) -> str:
    ours, theirs = scores.mean(column, tasks), scores.mean(other, tasks)
    return _ABSENT if ours is None or theirs is None else f"{ours - theirs:+.2f}"


def _reading(rows: Sequence[Row]) -> str:
    """What was cut, and how fast each system read."""
    lines = []
    for system in dict.fromkeys(row.system for row in rows):
        # One encoding serves all precisions and dimensions: count each task and context once.
        once = {(row.task, row.context): row for row in rows if row.system == system}.values()
        tokens, seconds = sum(row.counts["tokens"] for row in once), sum(row.seconds for row in once)
        cut, windows = sum(row.counts["texts_cut"] for row in once), sum(row.counts["windows"] for row in once)
        parts = [f"{tokens:,} tokens in {seconds:,.0f} s ({tokens / seconds:,.0f} a second)"] if seconds else []
        parts += [f"{cut:,} texts cut"] if cut else []
        parts += [f"{windows:,} windows of documents"] if windows else []
        if parts:
            lines.append(f"{system}: {', '.join(parts)}")
    return "\n".join(lines)


def _tables(corner: str, columns: Sequence[Column], lines: Sequence[Sequence[str]]) -> str:
    """One table, or several below each other when the columns are too many for a line."""
    heads = [[corner, *head] for head in zip(*(column.head for column in columns), strict=True)]
    label_width, widths = _widths([*heads, *lines])
    parts, start = [], 0
    while start < len(widths):
        stop = start + 1
        while stop < len(widths) and label_width + sum(widths[start : stop + 1]) <= _LINE_WIDTH:
            stop += 1
        part = [[line[0], *line[1 + start : 1 + stop]] for line in [*heads, *lines]]
        head = [line for line in part[: len(heads)] if any(line[1:])]
        head = [line if i == 0 else ["", *line[1:]] for i, line in enumerate(head)]
        parts.append(table(head, part[len(heads) :]))
        start = stop
    return "\n\n".join(parts)


def table(heads: Sequence[Sequence[str]], lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first column to the left, the others to the right, a rule under the head."""
    label_width, widths = _widths([*heads, *lines])

    def text(line: Sequence[str]) -> str:
        cells = "".join(cell.rjust(width) for cell, width in zip(line[1:], widths, strict=True))
        return f"{line[0]:<{label_width}}{cells}".rstrip()

    rule = "─" * (label_width + sum(widths))
    return "\n".join([*(text(head) for head in heads), rule, *(text(line) for line in lines)])


def _widths(lines: Sequence[Sequence[str]]) -> tuple[int, list[int]]:
    """Width of the labels and of each other column."""
    return max(len(line[0]) for line in lines) + 1, [
        max(_CELL_WIDTH, *(len(line[i]) + 2 for line in lines)) for i in range(1, len(lines[0]))
    ]


def _cell(score: float | None) -> str:
    return _ABSENT if score is None else f"{score:.2f}"
