"""One result: a system on a task at a precision, a dimension and a context; and the file that results are kept in."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pplx_bench.workdir import append_lines
from pplx_edge.errors import InputError

BENCHMARK = "quality"
REVISION = 1  # of how figures are made; results of another are not reused
_KEY = (
    "revision",
    "system_hash",
    "task_hash",
    "context",
    "precision",
    "dim",
    "native",
    "max_tokens",
    "window",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A system's figures on a task, and everything that they have to be read with.

    `dim` is the number of components that were compared (None: no vectors), `native` whether those are all; `seconds`
    and `tokens_per_second` are of encoding queries and passages, once for all precisions and dimensions.
    """

    system: str
    model: str
    format: str | None
    system_hash: str
    task: str
    task_hash: str
    context: str
    precision: str
    dim: int | None
    native: bool
    max_tokens: int | None
    window: int | None
    metrics: Mapping[str, float]
    counts: Mapping[str, int]
    seconds: float
    tokens_per_second: float | None
    revision: int = REVISION
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[Any, ...]:
        """What must be equal for a result to be used again; the native dimension stands for itself."""
        named = asdict(self) | {"dim": None if self.native else self.dim}
        return tuple(named[name] for name in _KEY)

    def line(self) -> dict[str, Any]:
        """The JSON object."""
        body = asdict(self)
        header = body.pop("header")
        return {"benchmark": BENCHMARK, **body, **header}


def read_rows(path: Path | None) -> list[Row]:
    """The results in a JSON Lines file, none when there is no file; lines of other benchmarks are passed over.

    A last line without a newline is what a killed run left of it, and is passed over too. Raises InputError, naming
    the line, for anything else that is not a result.
    """
    if path is None or not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); choose another file with --json") from error
    found = [_row(f"{path}:{number}", line) for number, line in enumerate(lines[:-1], start=1) if line.strip()]
    return [row for row in found if row is not None]


def append_row(path: Path, row: Row) -> None:
    """Adds a result to a file, after what is whole in it."""
    append_lines(path, [row.line()])


def renamed(row: Row, system: str, model: str, task: str) -> Row:
    """A result of the same files under the names that this run calls them by."""
    return replace(row, system=system, model=model, task=task)


def _row(where: str, line: str) -> Row | None:
    try:
        body = json.loads(line)
        if body.get("benchmark") != BENCHMARK:
            return None
        names = [item.name for item in fields(Row) if item.name != "header"]
        if body["revision"] != REVISION:
            return None
        header = {name: value for name, value in body.items() if name not in (*names, "benchmark")}
        return Row(**{name: body[name] for name in names}, header=header)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: not a result of bench quality ({error!r}); choose another file") from error
