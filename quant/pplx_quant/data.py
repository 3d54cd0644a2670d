"""Streaming readers over gzip JSON Lines: pairs, ordered chunks and plain paragraphs.

A row that is no JSON object, misses a field or holds an empty one is dropped and its line number kept; a file
with too large a share of such rows is refused.
"""

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pplx_quant.errors import DataError

MAX_DROPPED_SHARE = 0.01
MAX_LINES_KEPT = 20


@dataclass(frozen=True)
class Pair:
    """One query and the passage that answers it."""

    query: str
    positive: str
    lang: str
    source: str
    doc_id: str | None = None
    chunk_idx: int | None = None

    @property
    def query_lang(self) -> str:
        """Language of the query; `lang` of a parallel pair is `<query language>-<positive language>`."""
        return self._languages[0]

    @property
    def positive_lang(self) -> str:
        """Language of the positive."""
        return self._languages[-1]

    @property
    def _languages(self) -> tuple[str, ...]:
        # A language may hold a hyphen of its own (zh-Hant), before a capital.
        return tuple(re.split(r"-(?=[a-z])", self.lang))


@dataclass(frozen=True)
class Document:
    """A document as ordered chunks."""

    doc_id: str
    title: str
    chunks: tuple[str, ...]
    lang: str


@dataclass
class ReadReport:
    """What a reader has seen of one file: rows read, rows dropped, and where."""

    path: Path
    n_rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    lines: list[int] = field(default_factory=list)

    @property
    def n_dropped(self) -> int:
        """Rows dropped for any reason."""
        return sum(self.dropped.values())

    def drop(self, line: int, reason: str) -> None:
        """Count a dropped row; the first line numbers are kept."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if len(self.lines) < MAX_LINES_KEPT:
            self.lines.append(line)

    def require(self, max_dropped_share: float) -> None:
        """Raise DataError when more than `max_dropped_share` of the rows were dropped."""
        if self.n_dropped <= max_dropped_share * self.n_rows:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        raise DataError(
            f"{self.path.name}: {self.n_dropped} of {self.n_rows} rows dropped ({reasons}; first lines "
            f"{', '.join(map(str, self.lines[:5]))}), limit {max_dropped_share:.1%}; repair the file or raise the limit"
        )


def read_rows(path: Path, fields: tuple[str, ...], report: ReadReport) -> Iterator[tuple[int, dict]]:
    """Line number and object of each row of a `.jsonl.gz` whose `fields` are all non-empty strings."""
    for number, line in enumerate(_lines(path), start=1):
        report.n_rows += 1
        try:
            row = json.loads(line)
        except ValueError:
            report.drop(number, "malformed")
            continue
        if not isinstance(row, dict) or any(not isinstance(row.get(name), str) for name in fields):
            report.drop(number, "without field")
        elif any(not row[name].strip() for name in fields):
            report.drop(number, "empty")
        else:
            yield number, row


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path, "rb") as stream:
            yield from stream
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path.name}: not a complete gzip file ({error})") from error


def read_pairs(path: Path, max_dropped_share: float = MAX_DROPPED_SHARE) -> tuple[list[Pair], ReadReport]:
    """All pairs of a file, without those whose query equals the positive, and the report.

    Raises DataError when the file cannot be read or too many rows were dropped.
    """
    report = ReadReport(path)
    pairs = []
    for number, row in read_rows(path, ("query", "positive", "lang", "source"), report):
        if row["query"].strip() == row["positive"].strip():
            report.drop(number, "query equals positive")
        else:
            place = row.get("doc_id"), row.get("chunk_idx")
            pairs.append(Pair(row["query"], row["positive"], row["lang"], row["source"], *place))
    report.require(max_dropped_share)
    return pairs, report


def read_texts(path: Path, max_dropped_share: float = MAX_DROPPED_SHARE) -> tuple[list[tuple[str, str]], ReadReport]:
    """All (text, source) of a file of plain paragraphs, and the report."""
    report = ReadReport(path)
    texts = [(row["text"], row["source"]) for _, row in read_rows(path, ("text", "source"), report)]
    report.require(max_dropped_share)
    return texts, report


def read_documents(path: Path, max_dropped_share: float = MAX_DROPPED_SHARE) -> tuple[list[Document], ReadReport]:
    """All documents of a file of ordered chunks, in the order of their first chunk, and the report.

    Raises DataError for a file that cannot be read, has too many bad rows, or lists a document's chunks out of order.
    """
    report = ReadReport(path)
    found: dict[str, list[dict]] = {}
    for number, row in read_rows(path, ("chunk", "lang", "doc_title", "doc_id"), report):
        chunks = found.setdefault(row["doc_id"], [])
        if chunks and row.get("chunk_idx", 0) <= chunks[-1].get("chunk_idx", 0):
            raise DataError(f"{path.name}:{number}: chunk {row.get('chunk_idx')} of {row['doc_id']} is out of order")
        chunks.append(row)
    report.require(max_dropped_share)
    documents = [
        Document(doc_id, rows[0]["doc_title"], tuple(row["chunk"] for row in rows), rows[0]["lang"])
        for doc_id, rows in found.items()
    ]
    return documents, report


def list_files(folder: Path, kind: str) -> list[Path]:
    """Files `<kind>.<name>.jsonl.gz` of a data folder, sorted by name; DataError when there are none."""
    paths = sorted(folder.glob(f"{kind}.*.jsonl.gz"))
    if not paths:
        raise DataError(f"{folder}: holds no {kind}.*.jsonl.gz")
    return paths


def file_key(path: Path) -> str:
    """The middle of `<kind>.<key>.jsonl.gz`: a source for pairs and chunks, a language for text."""
    return path.name.removesuffix(".jsonl.gz").split(".", 1)[1]
