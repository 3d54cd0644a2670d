"""The report as an HTML page that opens offline, as Markdown for a model card, and as lines for the terminal."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from pplx_bench.tables import ABSENT
from pplx_bench.variants.summary import Recommendation, Row, as_dicts, front

FRONT = {"speed": "high", "quality": "high"}
_MEGA = 1e6
_HEAD = (
    "variant",
    "MB",
    "quality",
    "codes moved",
    "tokens/s",
    "query ms",
    "first vector s",
    "peak MB",
    "bidirectional",
    "batch-independent",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that a report shows. `header` has machine, commit and versions; `left_out` maps names to reasons."""

    model: str
    header: Mapping[str, Any]
    rows: Sequence[Row]
    recommendations: Sequence[Recommendation]
    left_out: Mapping[str, str]
    tasks: Sequence[str]
    no_energy: str = ""
    changes: Sequence[tuple[str, str, float, float]] = field(default=())

    @property
    def quality_name(self) -> str:
        """What the quality of a row is."""
        return f"nDCG@10, {', '.join(self.tasks)}" if self.tasks else "share of the ten nearest kept"

    @property
    def front(self) -> list[str]:
        """The variants that no other beats in speed and quality."""
        return front(self.rows, FRONT)  # type: ignore[arg-type]


def html(report: Report) -> str:
    """Return the page. It contains everything that it needs."""
    data = {
        "model": report.model,
        "header": dict(report.header),
        "rows": as_dicts(report.rows),
        "recommendations": [
            {"use": r.use, "variant": r.variant, "sentence": r.sentence} for r in report.recommendations
        ],
        "leftOut": dict(report.left_out),
        "quality": report.quality_name,
        "noEnergy": report.no_energy,
        "changes": list(report.changes),
    }
    page = files("pplx_bench.variants").joinpath("page.html").read_text(encoding="utf-8")
    stored = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")  # no text can close the script
    return page.replace("{{DATA}}", stored)


def markdown(report: Report) -> str:
    """Return tables and recommendations for a model card."""
    machine = report.header["machine"]
    lines = [
        f"## Variants of {report.model}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}. "
        f"Made by `pplx-edge bench variants {report.model}` at commit {report.header['commit']}. "
        f"Quality is {report.quality_name}; speed is on the largest batch that was measured.",
        "",
    ]
    lines += [f"- **{r.use}:** {r.sentence}" for r in report.recommendations]
    lines += ["", f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
    lines += [f"| {' | '.join(_cells(row, row.variant in report.front))} |" for row in report.rows]
    lines += ["", "**Bold** variants are on the Pareto front of speed and quality."]
    if report.no_energy:
        lines += ["", f"Energy is not measurable here, because {report.no_energy}."]
    missing = dict(report.left_out) | {row.variant: row.error for row in report.rows if row.error}
    if missing:
        lines += ["", "Not run, or not in full:", ""] + [f"- {name}: {why}" for name, why in missing.items()]
    if report.changes:
        lines += ["", "Changed since the earlier results:", ""]
        lines += [f"- {name}, {figure}: {old:.6g} → {new:.6g}" for name, figure, old, new in report.changes]
    return "\n".join(lines) + "\n"


def _cells(row: Row, on_front: bool) -> list[str]:
    name = f"**{row.variant}**" if on_front else row.variant
    return [
        name + (" (peer)" if row.peer else ""),
        _number(row.bytes, 1 / _MEGA, 1),
        _number(row.quality, 1, 4),
        _number(row.codes_moved, 100, 1, " %"),
        _number(row.speed, 1, 0),
        _number(row.query_seconds, 1e3, 1),
        _number(row.first_vector_seconds, 1, 2),
        _number(row.rss, 1 / _MEGA, 0),
        _yes(row.bidirectional),
        _yes(row.batch_independent),
    ]


def _number(value: float | None, scale: float, digits: int, unit: str = "") -> str:
    return ABSENT if value is None else f"{value * scale:,.{digits}f}{unit}"


def _yes(value: bool | None) -> str:
    return ABSENT if value is None else "yes" if value else "**no**"
