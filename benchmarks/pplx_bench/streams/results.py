"""The results of `bench stream`: one JSON line each, found again by what they were made of."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pplx_bench.workdir import append_lines, say
from pplx_edge.errors import InputError

BENCHMARK = "stream"
REVISION = 1  # of how figures are made; results of another are not reused
Result = dict[str, Any]
FAILED = "error"


@dataclass(slots=True)
class Results:
    """The results of a run, and the file that they are appended to as soon as each is known (None: none).

    A result that the file already holds under the same key is taken from there; a failure is tried again.
    """

    header: Mapping[str, Any]
    path: Path | None = None
    fresh: list[Result] = field(default_factory=list)
    _known: dict[str, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in _read(self.path):
            self._known[line["key"]] = line

    def get(self, what: str, made_of: Mapping[str, Any], make: Callable[[], Mapping[str, Any]]) -> Result:
        """The result that was made of exactly this, from the file or from `make`; `made_of` stands in it as well."""
        key = _key(what, made_of)
        if key not in self._known:
            figures = make()
            line = {"benchmark": BENCHMARK, "what": what, **made_of, **figures, "key": key, **self.header}
            self.fresh.append(line)
            if self.path is not None and FAILED not in figures:
                append_lines(self.path, [line])
            self._known[key] = line
        else:
            say(f"{what}: {_named(made_of)}: found in {self.path}")
        return self._known[key]


def _read(path: Path | None) -> Iterable[Result]:
    """The results in a file; lines of other benchmarks, and a last line that is not whole, are passed over."""
    if path is None or not path.is_file():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path}:{number}: not JSON ({error}); choose another file with --json") from error
        if isinstance(line, dict) and line.get("benchmark") == BENCHMARK and "key" in line:
            lines.append(line)
    return lines


def _key(what: str, made_of: Mapping[str, Any]) -> str:
    content = json.dumps([REVISION, what, made_of], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _named(made_of: Mapping[str, Any]) -> str:
    """The part of a key that a reader knows a result by."""
    return ", ".join(f"{name} {value}" for name, value in made_of.items() if isinstance(value, str | int) and value)
