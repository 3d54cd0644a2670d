"""Streaming readers of gzip JSON Lines: pairs, chunks of documents, and plain paragraphs.

A row that is not a JSON object, or has a missing or empty field, is dropped and counted with its line number. A file
with too many such rows is refused.
"""

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pplx_quant.errors import DataError

TEXT_KINDS = ("text", "text2", "text3")  # of plain paragraphs; a folder needs files of the first kind only
MAX_DROPPED_SHARE = 0.01
MAX_LINES_KEPT = 20


@dataclass(frozen=True)
class Pair:
    """A query and the passage that answers it."""

    query: str
    positive: str
    lang: str
    source: str
    doc_id: str | None = None
    chunk_idx: int | None = None

    @property
    def query_lang(self) -> str:
        """The language of the query. The `lang` of a parallel pair is `<query language>-<positive language>`."""
        return self._languages[0]

    @property
    def positive_lang(self) -> str:
        """The language of the positive."""
        return self._languages[-1]

    @property
    def _languages(self) -> tuple[str, ...]:
        # A language code may contain a hyphen before a capital: zh-Hant.
        return tuple(re.split(r"-(?=[a-z])", self.lang))


@dataclass(frozen=True)
class Document:
    """A document as a sequence of chunks."""

    doc_id: str
    title: str
    chunks: tuple[str, ...]
    lang: str


@dataclass
class ReadReport:
    """Counts for one file: rows read, rows dropped by reason, and the line numbers of the first of them."""

    path: Path
    n_rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    lines: list[int] = field(default_factory=list)

    @property
    def n_dropped(self) -> int:
        """The number of dropped rows."""
        return sum(self.dropped.values())

    def drop(self, line: int, reason: str) -> None:
        """Count a dropped row, and keep its line number if it is among the first."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        if len(self.lines) < MAX_LINES_KEPT:
            self.lines.append(line)

    def require(self, max_dropped_share: float) -> None:
        """Raise DataError if more than `max_dropped_share` of the rows were dropped."""
        if self.n_dropped <= max_dropped_share * self.n_rows:
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        raise DataError(
            f"{self.path.name}: {self.n_dropped} of {self.n_rows} rows dropped ({reasons}; first lines "
            f"{', '.join(map(str, self.lines[:5]))}), limit {max_dropped_share:.1%}; repair the file or raise the limit"
        )


def read_rows(path: Path, fields: tuple[str, ...], report: ReadReport) -> Iterator[tuple[int, dict]]:
    """Yield the line number and the object of each row of a `.jsonl.gz` file whose `fields` are non-empty strings."""
    for number, line in enumerate(_lines(path), start=1):
        report.n_rows += 1
        try:
            row = json.loads(line)
        except ValueError:
            report.drop(number, "malformed")
            continue
        if not isinstance(row, dict) or any(not isinstance(row.get(name), str) for name in fields):
            report.drop(number, "missing field")
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
    """Return the pairs of a file, except those whose query equals the positive, and the report.

    Raises DataError if the file cannot be read or too many rows were dropped.
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
    """Return the (text, source) rows of a file of plain paragraphs, and the report."""
    report = ReadReport(path)
    texts = [(row["text"], row["source"]) for _, row in read_rows(path, ("text", "source"), report)]
    report.require(max_dropped_share)
    return texts, report


def read_documents(path: Path, max_dropped_share: float = MAX_DROPPED_SHARE) -> tuple[list[Document], ReadReport]:
    """Return the documents of a file of chunks, in the order of their first chunk, and the report.

    Raises DataError if the file cannot be read, has too many bad rows, or lists the chunks of a document out of order.
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
    """Return the files `<kind>.<name>.jsonl.gz` of a folder, sorted by name.

    Raises DataError if there are none, except for further kinds of plain paragraphs.
    """
    paths = sorted(folder.glob(f"{kind}.*.jsonl.gz"))
    if not paths and kind not in TEXT_KINDS[1:]:
        raise DataError(f"{folder}: contains no {kind}.*.jsonl.gz file")
    return paths


def file_key(path: Path) -> str:
    """Return the key of `<kind>.<key>.jsonl.gz`: a source for pairs and chunks, a language for text."""
    return path.name.removesuffix(".jsonl.gz").split(".", 1)[1]


def text_language(path: Path) -> str:
    """Return the language of a file of plain paragraphs: its key, or for a key in no language (`debian`) English."""
    key = file_key(path)
    return key if len(key.split("-")[0]) <= 3 else "en"
