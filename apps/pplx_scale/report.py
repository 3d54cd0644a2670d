"""The report on an embedded corpus, computed from its files, so that it is the same however often runs were killed."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from pandas.core.util.hashing import hash_array

from pplx_scale import output
from pplx_scale.storage import Place

_EXAMPLES = 20
_HASHES_AT_ONCE = 32_000_000  # of 8 bytes each


@dataclass(slots=True, kw_only=True)
class Report:
    """The outcome of the rows of a corpus.

    `rows` = embedded + skipped + failed. `duplicates` counts ids that more than one row has; each of these rows keeps
    its own key and its own vectors. `seconds` and `run_tokens` are those of the last run alone, and `restarts` is how
    many earlier runs did not end.
    """

    rows: int = 0
    vectors: int = 0
    tokens: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    duplicates: int = 0
    duplicate_examples: list[str] = field(default_factory=list)
    bytes: int = 0
    seconds: float = 0.0
    run_rows: int = 0
    run_tokens: int = 0
    restarts: int = 0

    @property
    def tokens_per_second(self) -> float:
        """The tokens of the last run per second."""
        return self.run_tokens / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return asdict(self) | {"tokens_per_second": round(self.tokens_per_second, 1)}

    def summary(self) -> str:
        """Return the figures as a few readable lines."""
        n_skipped, n_failed = sum(self.skipped.values()), sum(self.failed.values())
        lines = [
            f"{self.rows:,} rows: {self.rows - n_skipped - n_failed:,} embedded, {n_skipped:,} skipped"
            f"{_reasons(self.skipped)}, {n_failed:,} failed{_reasons(self.failed)}",
            f"{self.vectors:,} vectors of {self.tokens:,} tokens, {self.bytes / 1e6:,.1f} MB",
            f"this run: {self.run_rows:,} rows in {self.seconds:,.1f} s, {self.tokens_per_second:,.0f} tokens/s"
            + (
                f", after {self.restarts} interrupted {'run' if self.restarts == 1 else 'runs'}"
                if self.restarts
                else ""
            ),
        ]
        lines += [
            f"failed: {each['id'] or each['key']}: {each['reason']} ({each['detail']})" for each in self.examples[:3]
        ]
        if self.duplicates:
            some = ", ".join(self.duplicate_examples[:3])
            lines.append(f"{self.duplicates:,} ids are not unique, for example {some}; use the column key instead")
        return "\n".join(lines)


def read_report(place: Place, run: int | None = None) -> Report:
    """Return the report on the files of an embedded corpus; `run` is the number of the run that has just ended."""
    report = Report()
    skipped, failed = Counter(), Counter()
    for name, path in _parts(place, output.DOCUMENTS):
        with place.filesystem.open_input_file(path) as file:
            parquet = pq.ParquetFile(file)
            counts = json.loads(parquet.schema_arrow.metadata[output.COUNTS])
            if counts["failed"] and len(report.examples) < _EXAMPLES:
                table = parquet.read(["key", "id", "status", "reason", "detail"])
                wrong = [row for row in table.to_pylist() if row.pop("status") == output.FAILED]
                report.examples += wrong[: _EXAMPLES - len(report.examples)]
        report.rows += counts["rows"]
        report.vectors += counts["vectors"]
        report.tokens += counts["tokens"]
        skipped.update(counts["skipped"])
        failed.update(counts["failed"])
        if run is not None and name.startswith(part_prefix(run)):
            report.run_rows += counts["rows"]
            report.run_tokens += counts["tokens"]
    report.skipped, report.failed = dict(skipped), dict(failed)
    report.bytes = sum(info.size for info in (place / output.DATA / output.VECTORS).files())
    return report


def find_duplicates(place: Place, n_rows: int, at_once: int = _HASHES_AT_ONCE) -> tuple[int, list[str]]:
    """Return the number of ids that several rows have, and some of them.

    Ids are hashed to 64 bits. A corpus with more rows than `at_once` is read several times, and each time only a share
    of the hashes is kept, so that memory does not grow with the corpus. Ids whose hashes are equal are compared.
    """
    passes = max(1, -(-n_rows // at_once))
    n_found, examples = 0, []
    for turn in range(passes):
        shares = [hashes[hashes % passes == turn] for _, hashes in _hashed_ids(place)]
        seen = pd.Series(pd.concat(map(pd.Series, shares)) if shares else [], dtype="uint64")
        repeated = set(seen[seen.duplicated()].tolist())
        del shares, seen
        if not repeated:
            continue
        counts: Counter[str] = Counter()
        for ids, hashes in _hashed_ids(place):
            counts.update(ids[pd.Series(hashes).isin(repeated).to_numpy()].tolist())
        found = [identity for identity, count in counts.items() if count > 1]
        n_found += len(found)
        examples += found[: _EXAMPLES - len(examples)]
    return n_found, examples


def part_prefix(run: int) -> str:
    """Return the beginning of the names of the files that a run writes."""
    return f"part-{run:04d}-"


def _hashed_ids(place: Place) -> Iterator[tuple[Any, Any]]:
    """Yield the ids of each documents file, and their hashes as uint64."""
    for _, path in _parts(place, output.DOCUMENTS):
        with place.filesystem.open_input_file(path) as file:
            ids = pq.read_table(file, columns=["id"])["id"].drop_null().to_numpy()
        yield ids, hash_array(ids, categorize=False)


def _parts(place: Place, kind: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the path of each file of a kind that has vectors, which are written last."""
    data = place / output.DATA
    complete = {info.base_name for info in (data / output.VECTORS).files()}
    for info in (data / kind).files():
        if info.base_name in complete:
            yield info.base_name, info.path


def _reasons(counts: dict[str, int]) -> str:
    return f" ({', '.join(f'{count:,} {reason}' for reason, count in sorted(counts.items()))})" if counts else ""
