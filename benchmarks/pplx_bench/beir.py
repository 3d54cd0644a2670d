"""Retrieval tasks in BEIR layout: passages, queries, and which passage answers which query.

    task/corpus.jsonl[.gz]     _id, text, optional title; for documents in pieces also doc_id and chunk_idx
    task/queries.jsonl[.gz]    _id, text, optional lang
    task/qrels.tsv             a header, then query-id, corpus-id, grade: every query must be judged
    task/qrels/SPLIT.tsv       the same, instead: queries of other splits are left out and counted
    tasks.json                 beside the task folders, optional: a list of objects with task and kind

Every error names the file and the line, says what was found there and what to do about it.
"""

import gzip
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pplx_edge.errors import InputError

DEFAULT_SPLIT = "test"
CONTEXTUAL = "contextual"
_COLUMNS = 3
_Item = TypeVar("_Item", "Passage", "Query")


@dataclass(frozen=True, slots=True)
class Passage:
    """One text of a corpus; `doc_id` and `chunk_idx` say which document it is a piece of and where in it."""

    id: str
    text: str
    title: str = ""
    doc_id: str | None = None
    chunk_idx: int = 0


@dataclass(frozen=True, slots=True)
class Query:
    """One question; `lang` is empty where the file does not say."""

    id: str
    text: str
    lang: str = ""


@dataclass(frozen=True)
class RetrievalTask:
    """A corpus ordered by id, its judged queries, and `judgements[query][passage]`, the grade (0: judged irrelevant).

    `left_out` counts queries of the file that this split does not judge. `kind` is what tasks.json calls the task.
    """

    name: str
    corpus: tuple[Passage, ...]
    queries: tuple[Query, ...]
    judgements: Mapping[str, Mapping[str, int]]
    left_out: int = 0
    kind: str = ""

    @property
    def is_contextual(self) -> bool:
        """Whether passages are pieces of documents, and tasks.json, where there is one, calls the task contextual."""
        return self.kind in ("", CONTEXTUAL) and all(passage.doc_id is not None for passage in self.corpus)

    @property
    def has_titles(self) -> bool:
        """Whether any passage has a title."""
        return any(passage.title for passage in self.corpus)

    @property
    def n_judgements(self) -> int:
        """Judged pairs."""
        return sum(len(grades) for grades in self.judgements.values())

    @cached_property
    def languages(self) -> tuple[str, ...]:
        """Languages of the queries, sorted."""
        return tuple(sorted({query.lang for query in self.queries if query.lang}))

    @cached_property
    def documents(self) -> tuple[tuple[int, ...], ...]:
        """Places in `corpus` of the pieces of each document, in the order of their `chunk_idx`."""
        pieces: dict[str, list[int]] = {}
        for place, passage in enumerate(self.corpus):
            if passage.doc_id is not None:
                pieces.setdefault(passage.doc_id, []).append(place)
        return tuple(tuple(sorted(places, key=lambda i: self.corpus[i].chunk_idx)) for places in pieces.values())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that a score depends on."""
        content = [
            [[p.id, p.text, p.title, p.doc_id, p.chunk_idx] for p in self.corpus],
            [[q.id, q.text, q.lang] for q in self.queries],
            [[query, sorted(grades.items())] for query, grades in sorted(self.judgements.items())],
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def task_folders(folders: Sequence[Path], names: Sequence[str] | None = None) -> list[Path]:
    """The task folders among `folders` and directly below them; `names` picks some, in their order.

    Raises InputError for a folder without a task, two tasks of one name, or a name that none has.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for path in _tasks_in(folder):
            if found.setdefault(path.name, path).resolve() != path.resolve():
                raise InputError(f"{path}: a second task named {path.name}, beside {found[path.name]}; rename one")
    if names is None:
        return list(found.values())
    for name in names:
        if name not in found:
            raise InputError(f"no task {name!r} in {_listed(folders)}; there are: {', '.join(found)}")
    return [found[name] for name in dict.fromkeys(names)]


def read_task(folder: Path, split: str = DEFAULT_SPLIT) -> RetrievalTask:
    """The task in a folder. Raises InputError, naming file and line, for anything that is missing or inconsistent."""
    corpus_file, queries_file = _data_file(folder, "corpus"), _data_file(folder, "queries")
    qrels_file, is_split = _qrels_file(folder, split)
    corpus = _unique(corpus_file, (_passage(where, row) for where, row in json_rows(corpus_file)), "passage")
    queries = _unique(queries_file, (_query(where, row) for where, row in json_rows(queries_file)), "query")
    _require_documents(corpus_file, corpus.values())
    judgements = _judgements(qrels_file, corpus, queries)
    answerable = {query for query, grades in judgements.items() if any(grade > 0 for grade in grades.values())}
    unjudged = [query for query in queries if query not in answerable]
    if unjudged and not is_split:
        more = f" (and {len(unjudged) - 1:,} more)" if len(unjudged) > 1 else ""
        raise InputError(
            f"{qrels_file}: no passage with a grade above 0 for query {unjudged[0]!r}{more}; judge it, remove it from "
            f"{queries_file.name}, or name the file qrels/{split}.tsv if it is one split of several"
        )
    if not answerable:
        raise InputError(f"{qrels_file}: no query with a grade above 0; is {split!r} the split that was meant?")
    return RetrievalTask(
        folder.resolve().name,
        tuple(corpus[name] for name in sorted(corpus)),
        tuple(query for query in queries.values() if query.id in answerable),
        {query: judgements[query] for query in queries if query in answerable},
        len(unjudged),
        _kind(folder.resolve()),
    )


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


def _qrels_file(folder: Path, split: str) -> tuple[Path, bool]:
    """The judgements, and whether they are those of one split among several."""
    if (flat := folder / "qrels.tsv").is_file():
        return flat, False
    if (one := folder / "qrels" / f"{split}.tsv").is_file():
        return one, True
    there = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    hint = f"choose a split that is there: {', '.join(there)}" if there else "a task in BEIR layout needs one of them"
    raise InputError(f"{folder}: neither qrels.tsv nor qrels/{split}.tsv found; {hint}")


def _kind(folder: Path) -> str:
    """What `tasks.json` beside the folder calls the task; empty where it does not say."""
    listing = folder.parent / "tasks.json"
    if not listing.is_file():
        return ""
    try:
        kinds = {row["task"]: str(row.get("kind") or "") for row in json.loads(listing.read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{listing}: not a list of tasks ({error!r}); correct it or remove it") from error
    return kinds.get(folder.name, "")


def json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`file:line` and object of each line that is not blank."""
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", _object(f"{path}:{number}", line)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch or write it again") from error


def _object(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error}); each line must be one object with _id and text") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: a {type(row).__name__}, not an object; each line must be one with _id and text")
    return row


def _passage(where: str, row: dict[str, Any]) -> tuple[str, Passage]:
    doc_id, chunk_idx = row.get("doc_id"), row.get("chunk_idx")
    if (doc_id is None) != (chunk_idx is None):
        raise InputError(f"{where}: doc_id and chunk_idx belong together, only one of them is there; give both or none")
    if chunk_idx is not None and (isinstance(chunk_idx, bool) or not isinstance(chunk_idx, int) or chunk_idx < 0):
        raise InputError(f"{where}: chunk_idx must be a whole number from 0, found {chunk_idx!r}; number the pieces")
    title = row.get("title")
    if not isinstance(title, str | None):
        raise InputError(f"{where}: title must be a string, found {type(title).__name__}; quote it or leave it out")
    document = None if doc_id is None else str(doc_id)
    return where, Passage(_id(where, row), _text(where, row), title or "", document, chunk_idx or 0)


def _query(where: str, row: dict[str, Any]) -> tuple[str, Query]:
    lang = row.get("lang") or ""
    if not isinstance(lang, str):
        raise InputError(f"{where}: lang must be a string, found {type(lang).__name__}; quote it or leave it out")
    return where, Query(_id(where, row), _text(where, row), lang)


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


def _unique(path: Path, items: Iterator[tuple[str, _Item]], noun: str) -> dict[str, _Item]:
    """Items by id, in the order of the file; none may come twice, and there must be some."""
    found: dict[str, _Item] = {}
    for where, item in items:
        if item.id in found:
            raise InputError(f"{where}: {noun} {item.id!r} is there already; ids must be unique, remove one of the two")
        found[item.id] = item
    if not found:
        raise InputError(f"{path}: empty: no {noun} in it, at least 1 is needed; fetch or write it again")
    return found


def _require_documents(path: Path, corpus: Collection[Passage]) -> None:
    """Either every passage is a piece of a document or none is, and no piece comes twice."""
    seen: dict[tuple[str, int], str] = {}
    n_pieces = 0
    for passage in corpus:
        if passage.doc_id is None:
            continue
        n_pieces += 1
        piece = (passage.doc_id, passage.chunk_idx)
        if piece in seen:
            raise InputError(
                f"{path}: passages {seen[piece]!r} and {passage.id!r} are both piece {piece[1]} of document "
                f"{piece[0]!r}; number the pieces of a document differently"
            )
        seen[piece] = passage.id
    if n_pieces not in (0, len(corpus)):
        raise InputError(f"{path}: {n_pieces:,} of {len(corpus):,} passages have a doc_id; give it to all or to none")


def _judgements(path: Path, corpus: Mapping[str, Passage], queries: Mapping[str, Query]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for where, (query, passage, grade) in _judged_lines(path):
        for name, known, noun, file in ((query, queries, "query", "queries"), (passage, corpus, "passage", "corpus")):
            if name not in known:
                raise InputError(f"{where}: judges {noun} {name!r}, which is not in the {file}; remove one or add it")
        if passage in found.setdefault(query, {}):
            raise InputError(f"{where}: {query!r} and {passage!r} are judged already; keep one of the two lines")
        found[query][passage] = grade
    return found


def _judged_lines(path: Path) -> Iterator[tuple[str, tuple[str, str, int]]]:
    """`file:line` and `(query, passage, grade)` of each line but the header and blank ones."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch or write it again") from error
    for number, line in enumerate(lines, start=1):
        fields = line.rstrip("\r").split("\t")
        if not line.strip() or (number == 1 and not _is_grade(fields[-1])):
            continue
        if len(fields) != _COLUMNS or not _is_grade(fields[2]):
            raise InputError(
                f"{path}:{number}: found {line.strip()[:60]!r}, expected query-id, corpus-id and a whole number, "
                "with tabs between; correct the line"
            )
        yield f"{path}:{number}", (fields[0], fields[1], int(fields[2]))


def _is_grade(text: str) -> bool:
    digits = text.strip().removeprefix("-")
    return digits.isascii() and digits.isdigit()


def _listed(folders: Sequence[Path]) -> str:
    return ", ".join(str(folder) for folder in folders)
