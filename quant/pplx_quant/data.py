"""Streaming readers of training data: pairs, chunks of documents, and plain paragraphs.

Our own files are gzip JSON Lines. Pairs can also come from JSON Lines, Parquet files and saved Hugging Face datasets,
in the columns of sentence-transformers or in the layout of BGE (see `pairs_of_row`).

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

TEXT_KINDS = ("text", "text2", "text3")  # of plain paragraphs
PAIR_SUFFIXES = (".jsonl.gz", ".jsonl", ".parquet")
MAX_DROPPED_SHARE = 0.01
MAX_LINES_KEPT = 20


@dataclass(frozen=True)
class Pair:
    """A query and the passage that answers it.

    `negatives` are passages that do not, and `scores` a teacher's scores of the positive and of each negative.
    """

    query: str
    positive: str
    lang: str
    source: str
    doc_id: str | None = None
    chunk_idx: int | None = None
    negatives: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()

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
    """Yield the line number and the object of each row of JSON Lines whose `fields` are non-empty strings."""
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
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as stream:
            yield from stream
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path.name}: not a complete gzip file ({error})") from error


def read_pairs(path: Path, max_dropped_share: float = MAX_DROPPED_SHARE) -> tuple[list[Pair], ReadReport]:
    """Return the pairs of a file, except those whose query equals the positive, and the report.

    The file is `.jsonl.gz` with all of our own fields, or one that `read_foreign_rows` reads. Raises DataError if it
    cannot be read or too many rows were dropped.
    """
    report = ReadReport(path)
    own = path.name.endswith(".jsonl.gz")
    rows = read_rows(path, ("query", "positive", "lang", "source"), report) if own else read_foreign_rows(path, report)
    pairs = []
    for number, row in rows:
        try:
            found = pairs_of_row(row, pair_group(path))
        except ValueError as error:
            report.drop(number, str(error))
            continue
        for pair in found:
            if pair.query.strip() == pair.positive.strip():
                report.drop(number, "query equals positive")
            else:
                pairs.append(pair)
    report.require(max_dropped_share)
    return pairs, report


def pair_group(path: Path) -> str:
    """Return the group of a file of pairs: its name without suffix and without `pairs.` in front."""
    name = path.name.removeprefix("pairs.")
    return next((name.removesuffix(end) for end in PAIR_SUFFIXES if name.endswith(end)), name)


def pairs_of_row(row: dict, group: str) -> list[Pair]:
    """Return the pairs of a row in one of three layouts. Raises ValueError, with the reason, if it is none of them.

    | layout | fields |
    |---|---|
    | our own | `query`, `positive`, and optionally `lang`, `source`, `doc_id`, `chunk_idx` |
    | sentence-transformers | `anchor` (or `query`), `positive`, `negative` or `negative_1` … `negative_n`, `score` |
    | BGE | `query`, `pos` and `neg` (lists), `pos_scores`, `neg_scores` |

    `score` is a list with the score of the positive and of each negative; a number is the score of the positive.
    """
    query = row.get("anchor", row.get("query"))
    if isinstance(row.get("pos"), list):
        positives, negatives = row["pos"], row.get("neg") or []
        of_positives, of_negatives = row.get("pos_scores") or [], row.get("neg_scores") or []
    else:
        positives = [row.get("positive")]
        names = [name for name in row if re.fullmatch(r"negative(_\d+)?", name)]
        negatives = [
            row[name] for name in sorted(names, key=lambda name: int(name.partition("_")[2] or 0)) if row[name]
        ]
        scores = row.get("score")
        scores = [] if scores is None else list(scores) if isinstance(scores, list | tuple) else [scores]
        of_positives, of_negatives = scores[:1], scores[1:]
    texts = [query, *positives, *negatives]
    if not positives or any(not isinstance(text, str) for text in texts):
        raise ValueError("missing field")
    if any(not text.strip() for text in texts):
        raise ValueError("empty")
    if of_positives and (len(of_positives), len(of_negatives)) != (len(positives), len(negatives)):
        if of_negatives or len(of_positives) != len(positives):
            raise ValueError("not one score for each passage")
        of_positives = []  # of the positives alone, there is nothing to compare
    lang, source = row.get("lang") or "und", row.get("source") or group
    place = row.get("doc_id"), row.get("chunk_idx")
    return [
        Pair(
            str(query),
            str(positive),
            lang,
            source,
            *place,
            negatives=tuple(negatives),
            scores=(float(of_positives[number]), *map(float, of_negatives)) if of_positives else (),
        )
        for number, positive in enumerate(positives)
    ]


def read_foreign_rows(path: Path, report: ReadReport) -> Iterator[tuple[int, dict]]:
    """Yield the number and the object of each row of JSON Lines, Parquet, or a saved Hugging Face dataset.

    A dataset is the directory that `save_to_disk` wrote; of several splits, `train` is read. Parquet and datasets need
    pyarrow. Raises DataError if the file cannot be read.
    """
    if path.name.endswith(".jsonl"):
        yield from read_rows(path, (), report)
        return
    try:
        for number, row in enumerate(_arrow_rows(path), start=1):
            report.n_rows += 1
            yield number, row
    except ImportError as error:
        raise DataError(f"{path}: needs pyarrow; install it with: pip install 'pplx-edge[train]'") from error
    except (OSError, ValueError) as error:  # pyarrow's errors are of these
        raise DataError(f"{path}: not readable ({error})") from error


def _arrow_rows(path: Path) -> Iterator[dict]:
    if path.is_dir():
        from pyarrow import ipc, memory_map

        folder = path / "train" if (path / "train").is_dir() else path
        listed = json.loads((folder / "state.json").read_text())["_data_files"]
        for item in listed:
            with memory_map(str(folder / item["filename"])) as file, ipc.open_stream(file) as stream:
                for batch in stream:
                    yield from batch.to_pylist()
    elif path.name.endswith(".parquet"):
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    else:
        raise DataError(f"{path}: not .jsonl, .parquet, or a directory of a saved dataset")


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


def list_files(folder: Path, kind: str, required: bool = True) -> list[Path]:
    """Return the files `<kind>.<name>.jsonl.gz` of a folder, sorted by name.

    Raises DataError if there are none and they are `required`.
    """
    paths = sorted(folder.glob(f"{kind}.*.jsonl.gz"))
    if not paths and required:
        raise DataError(f"{folder}: contains no {kind}.*.jsonl.gz file")
    return paths


def file_key(path: Path) -> str:
    """Return the key of `<kind>.<key>.jsonl.gz`: a source for pairs and chunks, a language for text."""
    return path.name.removesuffix(".jsonl.gz").split(".", 1)[1]


def text_language(path: Path) -> str:
    """Return the language of a file of plain paragraphs: its key, or for a key in no language (`debian`) English."""
    key = file_key(path)
    return key if len(key.split("-")[0]) <= 3 else "en"
