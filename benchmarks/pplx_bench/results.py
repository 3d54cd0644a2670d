"""Results of a benchmark in a JSON Lines file, one object each; a later run reuses those made from the same inputs."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pplx_bench.workdir import append_lines, say
from pplx_edge.errors import InputError

REVISION = 1  # of how results are made; results of another revision are not reused
FAILED = "error"  # the field with the reason if a result could not be measured
Result = dict[str, Any]


class Results:
    """The results of a benchmark; each is appended to the file (None: no file) as soon as it is known.

    Raises InputError if the file contains a line that is not a result. The last line may be incomplete, because a
    killed run leaves it so.
    """

    def __init__(self, benchmark: str, header: Mapping[str, Any], path: Path | None = None):
        self.benchmark, self.header, self.path = benchmark, header, path
        self._known = {result["key"]: result for result in self._read()}

    def get(self, made_of: Mapping[str, Any], make: Callable[[], Mapping[str, Any]], **names: Any) -> Result:
        """Return the result for these inputs, from the file or from `make`; a failed one is made again.

        The inputs are part of the result. So are `names`, which are only labels: they may differ from those in the
        file.
        """
        key = self.key(made_of)
        if key in self._known:
            shown = ", ".join(f"{k} {v}" for k, v in {**made_of, **names}.items() if isinstance(v, str | int) and v)
            say(f"{self.benchmark}, {shown}: found in {self.path}")
            return self._known[key] | names
        figures = make()
        result = {"benchmark": self.benchmark, **names, **made_of, **figures, "key": key, **self.header}
        if self.path is not None and FAILED not in figures:
            append_lines(self.path, [result])
        self._known[key] = result
        return result

    def has(self, made_of: Mapping[str, Any]) -> bool:
        """Return whether the result for these inputs is known."""
        return self.key(made_of) in self._known

    def key(self, made_of: Mapping[str, Any]) -> str:
        """Return the key of the result for these inputs."""
        content = json.dumps([REVISION, self.benchmark, made_of], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _read(self) -> list[Result]:
        if self.path is None or not self.path.is_file():
            return []
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path}: cannot be read ({error}); choose another file with --json") from error
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                result = json.loads(line or "{}")
                if result.get("benchmark") == self.benchmark:
                    found.append({"key": result["key"], **result})
            except (ValueError, KeyError, AttributeError) as error:
                raise InputError(
                    f"{self.path}:{number}: not a result of bench {self.benchmark} ({error!r}); choose another file"
                ) from error
        return found
