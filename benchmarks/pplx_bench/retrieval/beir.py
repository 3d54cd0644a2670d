"""Read retrieval tasks in BEIR layout: passages, queries, and the judgments (qrels) of which passages are relevant.

    task/corpus.jsonl[.gz]     _id, text, optional title; for documents in pieces also doc_id and chunk_idx
    task/queries.jsonl[.gz]    _id, text, optional lang
    task/qrels.tsv             a header, then query-id, corpus-id, grade; every query must be judged
    task/qrels/SPLIT.tsv       the same for one split; queries of other splits are dropped and counted
    tasks.json                 optional, next to the task folders: a list of objects with task and kind

Every error names the file and the line, says what was found, and how to fix it.
"""

import gzip
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pplx_edge.errors import InputError

DEFAULT_SPLIT = "test"
CONTEXTUAL = "contextual"
Qrels = Mapping[str, Mapping[str, int]]  # query id -> passage id -> grade; 0 is judged irrelevant
_Item = TypeVar("_Item", "TaskPassage", "TaskQuery")


@dataclass(frozen=True, slots=True)
class TaskPassage:
    """A passage of a corpus; `doc_id` and `chunk_idx` name its document and its place there, if it is a piece."""

    id: str
    text: str
    title: str = ""
    doc_id: str | None = None
    chunk_idx: int = 0


@dataclass(frozen=True, slots=True)
class TaskQuery:
    """A query; `lang` is empty if the file does not state it."""

    id: str
    text: str
    lang: str = ""


@dataclass(frozen=True)
class RetrievalTask:
    """A corpus sorted by id, its judged queries and their qrels.

    `left_out` is the number of queries that the split does not judge; `kind` is the kind that tasks.json states.
    """

    name: str
    corpus: tuple[TaskPassage, ...]
    queries: tuple[TaskQuery, ...]
    qrels: Qrels
    left_out: int = 0
    kind: str = ""

    @property
    def is_contextual(self) -> bool:
        """Return True if the passages are pieces of documents, unless tasks.json states another kind."""
        return self.kind in ("", CONTEXTUAL) and all(passage.doc_id is not None for passage in self.corpus)

    @cached_property
    def documents(self) -> tuple[tuple[int, ...], ...]:
        """The indices in `corpus` of the pieces of each document, ordered by `chunk_idx`."""
        pieces: dict[str, list[int]] = {}
        for index, passage in enumerate(self.corpus):
            if passage.doc_id is not None:
                pieces.setdefault(passage.doc_id, []).append(index)
        return tuple(tuple(sorted(indices, key=lambda i: self.corpus[i].chunk_idx)) for indices in pieces.values())

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of everything that a score depends on."""
        content = [
            [[p.id, p.text, p.title, p.doc_id, p.chunk_idx] for p in self.corpus],
            [[q.id, q.text, q.lang] for q in self.queries],
            [[query, sorted(grades.items())] for query, grades in sorted(self.qrels.items())],
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()

    def relevant(self, query: str) -> list[str]:
        """Return the ids of the passages that are judged relevant to a query."""
        return [passage for passage, grade in self.qrels[query].items() if grade > 0]


def task_folders(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[Path]:
    """Return the task folders among `folders` and directly below them, or those with these names, in that order.

    Raises InputError for a folder without a task, two tasks with the same name, or an unknown name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for path in _tasks_in(folder):
            if found.setdefault(path.name, path).resolve() != path.resolve():
                raise InputError(
                    f"{path}: a second task named {path.name}; the other is {found[path.name]}; rename one"
                )
    for name in names or ():
        if name not in found:
            raise InputError(f"no task {name!r} in {', '.join(map(str, folders))}; there are: {', '.join(found)}")
    return list(found.values()) if names is None else [found[name] for name in dict.fromkeys(names)]


def read_task(folder: Path, split: str = DEFAULT_SPLIT) -> RetrievalTask:
    """Return the task in a folder. Raises InputError for anything that is missing or inconsistent."""
    corpus_file, queries_file = _data_file(folder, "corpus"), _data_file(folder, "queries")
    qrels_file = _qrels_file(folder, split)
    corpus, queries = _by_id(corpus_file, _passage, "passage"), _by_id(queries_file, _query, "query")
    _check_documents(corpus_file, corpus.values())
    qrels = _read_qrels(qrels_file, corpus, queries)
    judged = {query: qrels[query] for query in queries if any(grade > 0 for grade in qrels.get(query, {}).values())}
    unjudged = [query for query in queries if query not in judged]
    if unjudged and qrels_file.parent == folder:
        more = f" (and {len(unjudged) - 1:,} more)" if len(unjudged) > 1 else ""
        raise InputError(
            f"{qrels_file}: no passage with a grade above 0 for query {unjudged[0]!r}{more}; judge it, remove it from "
            f"{queries_file.name}, or name the file qrels/{split}.tsv if it is one split of several"
        )
    if not judged:
        raise InputError(f"{qrels_file}: no query with a grade above 0; is {split!r} the right split?")
    return RetrievalTask(
        name=folder.resolve().name,
        corpus=tuple(corpus[name] for name in sorted(corpus)),
        queries=tuple(query for query in queries.values() if query.id in judged),
        qrels=judged,
        left_out=len(unjudged),
        kind=_kind(folder.resolve()),
    )


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `file:line` and the object of each line of a JSON Lines file, skipping blank lines."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", _object(f"{path}:{number}", line)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch or write it again") from error


def _tasks_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder in BEIR layout, or one that holds such folders")
    if _has_corpus(folder):
        return [folder]
    if tasks := sorted(path for path in folder.iterdir() if _has_corpus(path)):
        return tasks
    raise InputError(f"{folder}: no corpus.jsonl or corpus.jsonl.gz here or one level below; is it in BEIR layout?")


def _has_corpus(folder: Path) -> bool:
    return any((folder / f"corpus.jsonl{suffix}").is_file() for suffix in ("", ".gz"))


def _data_file(folder: Path, stem: str) -> Path:
    for name in (f"{stem}.jsonl", f"{stem}.jsonl.gz"):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: {stem}.jsonl (or {stem}.jsonl.gz) not found; a task in BEIR layout needs it")


def _qrels_file(folder: Path, split: str) -> Path:
    """Return qrels.tsv, which must judge every query, or the file of a split."""
    for path in (folder / "qrels.tsv", folder / "qrels" / f"{split}.tsv"):
        if path.is_file():
            return path
    splits = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    hint = f"choose a split that is there: {', '.join(splits)}" if splits else "a task in BEIR layout needs one of them"
    raise InputError(f"{folder}: neither qrels.tsv nor qrels/{split}.tsv found; {hint}")


def _kind(folder: Path) -> str:
    """Return the kind that `tasks.json` next to the folder states for the task, "" if there is none."""
    listing = folder.parent / "tasks.json"
    if not listing.is_file():
        return ""
    try:
        kinds = {row["task"]: str(row.get("kind") or "") for row in json.loads(listing.read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{listing}: not a list of tasks ({error!r}); correct it or remove it") from error
    return kinds.get(folder.name, "")


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}); each line must be an object with _id and text") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}, not an object; each line must be one with _id and text")
    return row


def _passage(where: str, row: dict[str, Any]) -> TaskPassage:
    doc_id, chunk_idx = row.get("doc_id"), row.get("chunk_idx")
    if (doc_id is None) != (chunk_idx is None):
        raise InputError(f"{where}: doc_id and chunk_idx belong together; give both or neither")
    if chunk_idx is not None and (isinstance(chunk_idx, bool) or not isinstance(chunk_idx, int) or chunk_idx < 0):
        raise InputError(f"{where}: chunk_idx must be a whole number from 0, found {chunk_idx!r}; number the pieces")
    document = None if doc_id is None else str(doc_id)
    return TaskPassage(_id(where, row), _text(where, row), _optional(where, row, "title"), document, chunk_idx or 0)


def _query(where: str, row: dict[str, Any]) -> TaskQuery:
    return TaskQuery(_id(where, row), _text(where, row), _optional(where, row, "lang"))


def _id(where: str, row: dict[str, Any]) -> str:
    name = row.get("_id")
    if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
        raise InputError(f"{where}: _id must be a string that is not empty, found {name!r}; give each line its own")
    return str(name)


def _text(where: str, row: dict[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise InputError(f"{where}: text must be a string, found {text!r}; an empty one is allowed")
    return text


def _optional(where: str, row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str | None):
        raise InputError(f"{where}: {name} must be a string, found {type(value).__name__}; quote it or leave it out")
    return value or ""


def _by_id(path: Path, parse: Callable[[str, dict[str, Any]], _Item], noun: str) -> dict[str, _Item]:
    """Return the items of a file by id, in file order. Raises InputError for a duplicate id or an empty file."""
    found: dict[str, _Item] = {}
    for where, row in json_rows(path):
        item = parse(where, row)
        if item.id in found:
            raise InputError(f"{where}: duplicate {noun} {item.id!r}; ids must be unique, remove one of the two")
        found[item.id] = item
    if not found:
        raise InputError(f"{path}: empty: no {noun} in it, at least 1 is needed; fetch or write it again")
    return found


def _check_documents(path: Path, corpus: Collection[TaskPassage]) -> None:
    """Raise InputError if only some passages are pieces of documents, or if a piece occurs twice."""
    seen: dict[tuple[str, int], str] = {}
    for passage in corpus:
        if passage.doc_id is not None:
            other = seen.setdefault((passage.doc_id, passage.chunk_idx), passage.id)
            if other != passage.id:
                raise InputError(
                    f"{path}: passages {other!r} and {passage.id!r} are both piece {passage.chunk_idx} of document "
                    f"{passage.doc_id!r}; number the pieces of a document differently"
                )
    if len(seen) not in (0, len(corpus)):
        raise InputError(f"{path}: {len(seen):,} of {len(corpus):,} passages have a doc_id; give it to all or to none")


def _read_qrels(path: Path, corpus: Collection[str], queries: Collection[str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for where, query, passage, grade in _judged_lines(path):
        for name, known, noun, file in ((query, queries, "query", "queries"), (passage, corpus, "passage", "corpus")):
            if name not in known:
                raise InputError(f"{where}: judges {noun} {name!r}, which is not in the {file}; remove one or add it")
        if passage in found.setdefault(query, {}):
            raise InputError(f"{where}: {query!r} and {passage!r} are judged already; keep one of the two lines")
        found[query][passage] = grade
    return found


def _judged_lines(path: Path) -> Iterator[tuple[str, str, str, int]]:
    """Yield `file:line`, query, passage and grade of each line except the header and blank lines."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch or write it again") from error
    for number, line in enumerate(lines, start=1):
        fields = line.rstrip("\r").split("\t")
        if not line.strip() or (number == 1 and not _is_grade(fields[-1])):
            continue
        match fields:
            case [query, passage, grade] if _is_grade(grade):
                yield f"{path}:{number}", query, passage, int(grade)
            case _:
                raise InputError(
                    f"{path}:{number}: found {line.strip()[:60]!r}, expected query-id, corpus-id and a whole number, "
                    "separated by tabs; correct the line"
                )


def _is_grade(text: str) -> bool:
    digits = text.strip().removeprefix("-")
    return digits.isascii() and digits.isdigit()
