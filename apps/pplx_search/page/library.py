"""The index as the page and MCP read it: answers, passages, documents and the state, as plain values for JSON.

Text of files goes into these values as it is: who shows it must treat it as text.
"""

import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import regex

from pplx_edge.errors import InputError
from pplx_search.console import shown_path
from pplx_search.ids import DocumentId
from pplx_search.ingest.failures import CODES
from pplx_search.query.relevance import judge
from pplx_search.query.snippets import snippet
from pplx_search.results import explained
from pplx_search.store import Answer, FileState, Filter, Hit, Query, Store
from pplx_search.store.database import DATABASE_FILE
from pplx_search.store.errors import StoreBusy

SNIPPET_CHARS = 320
MAX_HITS = 50
_MAX_FAILURES = 200
_HEADING = regex.compile(r"^ {0,3}#{1,6}\s+")
_RULE = regex.compile(r"[ :|]*-{3}[-:| ]*")  # between the head and the body of a table, or on its own
_TABLE_EDGE = regex.compile(r"^\s*\|\s*|\s*\|\s*$")
_WORD = regex.compile(r"[\p{L}\p{N}]+")
_STEM = 5  # words with the same first letters match
# The rarity that a word needs to be marked: at least this, and a share of the largest in the query. Words of up to
# three letters, such as "the", need more, because they are not common in an index of a few files.
_LEAST_RARITY, _TELLING, _TELLING_IF_SHORT, _SHORT = 0.25, 0.4, 0.8, 3
_CLOSE, _RELATED = 0.6, 0.4  # cosines of nano that deserve these words
_Result = TypeVar("_Result")


@dataclass(slots=True, eq=False)
class Library:
    """The index in a directory, opened when something was indexed. Safe to use from several threads."""

    home: Path
    _store: Store | None = None
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def settings(self) -> dict[str, Any] | None:
        """Return the settings of the vectors that searches use, or None for an empty index."""

        def read(store: Store) -> dict[str, Any] | None:
            serving = store.vectors.serving
            return None if serving is None else dict(serving.settings)

        return self._read(read, None)

    def search(self, words: str, codes: np.ndarray | None, k: int, wanted: Filter) -> dict[str, Any]:
        """Return the hits for a query, and whether they answer it."""
        query = Query(codes=codes, words=words, k=k, filter=wanted)
        answer = self._read(lambda store: store.answer(query), None)
        if answer is None:
            return {"hits": [], "relevant": True, "chance": None, "explained": "", "pending": 0}
        verdict = judge(answer, self.home)
        asked = _WORD.findall(words.casefold())
        telling = telling_stems(asked, self._read(lambda store: store.rarity(asked), {}))
        return {
            "hits": [hit_of(hit, text, words, telling) for hit, text in zip(answer.hits, answer.texts, strict=True)],
            "relevant": verdict.relevant,
            "chance": verdict.chance,
            "explained": explained(answer, verdict) if codes is not None else "",
            "pending": self._read(lambda store: store.n_pending(), 0),
        }

    def similar(self, document_id: int, start: int, k: int) -> dict[str, Any]:
        """Return the passages whose vectors are most similar to that of a passage. Raises InputError if it is gone."""

        def read(store: Store) -> tuple[Answer, int]:
            text_id = store.document(DocumentId(document_id)).text_id
            chunk = next((chunk for chunk in store.chunks(text_id) if chunk.start == start), None)
            if chunk is None:
                raise InputError("this passage has changed; search again")
            return store.answer(Query(codes=chunk.codes.copy(), k=k + 1)), text_id

        answer, own_text = self._read(read)
        pairs = zip(answer.hits, answer.texts, strict=True)
        others = [(hit, text) for hit, text in pairs if (hit.text_id, hit.start) != (own_text, start)]
        return {"hits": [hit_of(hit, text, "", set()) for hit, text in others[:k]], "relevant": True, "chance": None}

    def document(self, document_id: int) -> dict[str, Any]:
        """Return what is known of a document. Raises InputError if it is not in the index."""
        found = self._read(lambda store: store.document(DocumentId(document_id)))
        return {
            "document": found.id,
            "path": _text(found.path),
            "shown": shown_path(found.path, from_here=False),
            "part": found.part,
            "title": found.title,
            "kind": found.kind,
            "collection": found.collection,
            "date": found.date,
            "metadata": dict(found.metadata),
            "remarks": list(found.remarks),
            "n_chars": found.n_chars,
        }

    def path(self, document_id: int) -> Path:
        """Return the file of a document. Raises InputError if it is not in the index."""
        return Path(os.fsdecode(self._read(lambda store: store.document(DocumentId(document_id))).path))

    def text(self, document_id: int, start: int = 0, stop: int | None = None) -> str:
        """Return the slice `[start, stop)` of a document's text. Raises InputError if it is not in the index."""
        return self._read(lambda store: store.read(store.document(DocumentId(document_id)).text_id, start, stop))

    def lines(self, document_id: int, first: int, count: int) -> str:
        """Return lines of a document's text. Raises InputError if it is not in the index."""
        return self._read(lambda store: store.lines(store.document(DocumentId(document_id)).text_id, first, count))

    def status(self) -> dict[str, Any]:
        """Return how much is indexed, which files are not and why, and the folders."""
        return self._read(_status_of, _EMPTY)

    def close(self) -> None:
        """Close the index."""
        with self._guard:
            if self._store is not None:
                self._store.close()
                self._store = None

    def _read(self, read: Callable[[Store], _Result], without_index: Any = InputError) -> _Result:
        """Return what a function reads from the index, and `without_index` if there is none."""
        with self._guard:
            if self._store is None:
                try:
                    if not (self.home / DATABASE_FILE).exists():
                        raise InputError("nothing is indexed yet")
                    self._store = Store.open(self.home)
                except (InputError, StoreBusy):  # busy: an update is creating it at this moment
                    if without_index is InputError:
                        raise
                    return without_index
            return read(self._store)


def hit_of(hit: Hit, text: str, words: str, stems: set[str]) -> dict[str, Any]:
    """Return a hit as plain values. `snippet` lists parts of its text, each with whether it starts like a stem."""
    shown = (without_markup(text, {hit.title, *hit.heading}) if hit.kind == "markdown" else "").strip() or text
    return {
        "document": hit.document_id,
        "start": hit.start,
        "stop": hit.stop,
        "path": _text(hit.path),
        "shown": shown_path(hit.path, from_here=False),
        "name": shown_path(os.path.basename(hit.path), from_here=False),
        "part": hit.part,
        "title": hit.title,
        "heading": list(dict.fromkeys(part for part in hit.heading if part and part != hit.title)),
        "kind": hit.kind,
        "collection": hit.collection,
        "line": hit.line,
        "page": hit.page,
        "copies": hit.copies,
        "score": round(hit.score, 4),
        "snippet": marked(snippet(shown, words, SNIPPET_CHARS), stems),
        "text": text,
        "why": reasons(hit),
    }


def telling_stems(words: Sequence[str], rarity: Mapping[str, float]) -> set[str]:
    """Return the first letters of the words of a query, except of those that are common in the index, such as "the".

    `rarity` holds that of the words that the index contains, from 0 to 1.
    """
    most = max(rarity.values(), default=0.0)

    def tells(word: str) -> bool:
        share = _TELLING_IF_SHORT if len(word) <= _SHORT else _TELLING
        return rarity.get(word, 1.0) >= max(_LEAST_RARITY, share * most)

    return {word[:_STEM] for word in words if tells(word)}


def without_markup(text: str, known: Collection[str]) -> str:
    """Return Markdown as a snippet shows it: without marks of headings and tables, and without the `known` headings."""
    lines = []
    for line in text.splitlines():
        heading = _HEADING.sub("", line)
        if not (heading != line and heading.strip() in known) and not _RULE.fullmatch(line):
            lines.append(_TABLE_EDGE.sub("", heading))
    return "\n".join(lines)


def marked(text: str, stems: set[str]) -> list[tuple[str, bool]]:
    """Return a text in parts, each with whether it is a word that starts like one of the stems."""
    parts: list[tuple[str, bool]] = []
    at = 0
    for match in _WORD.finditer(text):
        if match.group().casefold()[:_STEM] in stems:
            parts += [(text[at : match.start()], False), (match.group(), True)]
            at = match.end()
    return [part for part in [*parts, (text[at:], False)] if part[0]]


def reasons(hit: Hit) -> list[str]:
    """Return why a hit was found, in plain words."""
    found = []
    if "phrase" in hit.ranks:
        found.append("It contains your words exactly as you wrote them.")
    if "name" in hit.ranks:
        found.append("The name or the title of the file matches.")
    if "words" in hit.ranks:
        found.append(f"It contains words of the question: place {hit.ranks['words']} among all passages that do.")
    if hit.cosine is not None:
        close = "Its meaning is close" if hit.cosine >= _CLOSE else "Its meaning is related"
        said = close if hit.cosine >= _RELATED else "Its meaning is far from the question"
        place = f", place {hit.ranks['dense']} of all passages" if "dense" in hit.ranks else ""
        found.append(f"{said}: similarity {hit.cosine:.2f} of 1{place}.")
    if hit.copies:
        found.append(f"{hit.copies} other documents have the same text.")
    return found


_EMPTY: dict[str, Any] = {
    "files": {"indexed": 0, "pending": 0, "failed": 0, "skipped": 0},
    "failures": [],
    "skipped": [],
    "roots": [],
    "documents": 0,
    "passages": 0,
    "model": None,
}


def _status_of(store: Store) -> dict[str, Any]:
    status = store.status()
    failures = [
        {
            "path": _text(report.path),
            "shown": shown_path(report.path, from_here=False),
            "why": report.message or CODES.get(report.code, report.code),
        }
        for report in islice(store.files.reports([FileState.FAILED]), _MAX_FAILURES)
    ]
    skipped = {code: count for code, count in status.reasons.items() if code not in CODES and code != "model"}
    return {
        "files": {
            "indexed": status.indexed,
            "pending": status.pending,
            "failed": status.failed,
            "skipped": status.skipped,
        },
        "failures": failures,
        "skipped": [{"why": code, "count": count} for code, count in sorted(skipped.items())],
        "roots": [
            {"id": root.id, "path": shown_path(root.path, from_here=False), "collection": each.name}
            for each in store.collections.all()
            for root in each.roots
        ],
        "documents": status.n_documents,
        "passages": status.n_chunks,
        "model": None if status.serving is None else status.serving.settings["model"],
    }


def _text(path: bytes) -> str:
    """Return a path as text that JSON can hold."""
    return os.fsdecode(path).encode("utf-8", "replace").decode()


def filter_of(fields: dict[str, Sequence[str]]) -> Filter:
    """Return the filter that the parameters of a URL describe. Raises InputError for a date that is none."""
    from pplx_search.commands.search import parse_date

    def date(name: str) -> float | None:
        texts = [text for text in fields.get(name, ()) if text]
        return parse_date(texts[0]) if texts else None

    return Filter(
        collections=tuple(fields.get("collection", ())),
        folders=tuple(os.fsencode(Path(folder).expanduser()) for folder in fields.get("in", ())),
        kinds=tuple(fields.get("type", ())),
        since=date("since"),
        until=date("until"),
    )
