"""`--what quality`: retrieval by chunks alone, after the title, in full context, and streamed, with and without sticky.

On contextual tasks the chunks are the task's passages; on whole books they are those of the stream itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pplx_bench.retrieval.beir import RetrievalTask
from pplx_bench.retrieval.encoders import EdgeEncoder, Encoded, passage_texts
from pplx_bench.retrieval.metrics import DEPTH
from pplx_bench.retrieval.metrics import evaluate as figures
from pplx_bench.retrieval.ranking import rank
from pplx_bench.streams.books import Book
from pplx_bench.streams.given import streamed_chunks, streamed_documents
from pplx_bench.streams.questions import asked, right_chunks
from pplx_bench.streams.results import Result, Results
from pplx_bench.workdir import say
from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.types import StreamOptions
from pplx_edge.vectors.codes import quantize
from pplx_edge.vectors.late_chunking import WindowSizes

ALONE, TITLE, FULL, STREAM, STICKY = "alone", "title", "full", "stream", "stream sticky"
BOOKS = "books"
BARE, TITLED = "sentence", "title: sentence"  # how a book is asked
MAIN = "ndcg@10"
MAX_TEXT_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to make the chunks' vectors: its name, and a stream's options (empty: no stream)."""

    name: str
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        """With its window and margin."""
        if not self.options:
            return self.name
        return f"{self.name} {self.options['window']}/{self.options['margin']}"


def readings(windows: Sequence[int], margin: int | None, sticky: int, spec: ModelSpec, *, full: bool) -> list[Reading]:
    """Every way that is compared: a stream in each window without and with so many sticky tokens.

    Its margin is what the stream takes by itself where none is given.
    """
    margins = {w: WindowSizes.of(StreamOptions(window=w, margin=margin), spec).margin for w in windows}
    found = [Reading(name, {}) for name in (ALONE, TITLE, *((FULL,) if full else ()))]
    for name, n_sticky in ((STREAM, 0), (STICKY, sticky)):
        for window in windows:
            options = {"window": window, "margin": margins[window], "sticky": n_sticky}
            found.append(Reading(name, options))
    return found


def measure_task(
    encoder: EdgeEncoder,
    task: RetrievalTask,
    ways: Sequence[Reading],
    options: Mapping[str, Any],
    made_of: Mapping[str, Any],
    results: Results,
) -> list[Result]:
    """A result for each way of reading a contextual task. Raises InputError when its passages have no documents."""
    if not task.is_contextual:
        raise InputError(f"{task.name}: its passages are no pieces of documents; name contextual tasks with --tasks")
    queries: list[Encoded] = []

    def made(way: Reading) -> dict[str, Any]:
        if not queries:
            queries.append(encoder.texts([query.text for query in task.queries]))
        passages = _passages(encoder, task, way, options)
        ranking = rank(quantize(queries[0].means, "int8"), quantize(passages.means, "int8"), DEPTH)
        found = figures(task.qrels, [q.id for q in task.queries], [p.id for p in task.corpus], ranking)
        return {"metrics": found, "queries": len(task.queries), "chunks": len(task.corpus)} | _cost(passages)

    about = {**made_of, "task": task.name, "task_hash": task.digest[:16]}
    return list(_each(ways, about, made, results))


def measure_books(
    encoder: EdgeEncoder,
    books: Sequence[Book],
    n_questions: int,
    ways: Sequence[Reading],
    options: Mapping[str, Any],
    made_of: Mapping[str, Any],
    results: Results,
) -> list[Result]:
    """A result for each way of reading whole books; in its figures those of both ways of asking."""
    library = Library(encoder, books, n_questions, [{**options, **way.options} for way in ways if way.options])
    about = {**made_of, "task": BOOKS, "questions": n_questions}
    return list(_each(ways, about, library.figures, results))


class Library:
    """Whole books less the sentences that are asked for, in the chunks of the first of these streams' options."""

    def __init__(
        self, encoder: EdgeEncoder, books: Sequence[Book], n_questions: int, streams: Sequence[Mapping[str, Any]]
    ):
        self.encoder, self.streams = encoder, streams
        self.books = [asked(book, n_questions) for book in books]
        self._bounds: list[list[tuple[int, int]]] = []
        self._first: Encoded | None = None
        self._queries: dict[str, Encoded] = {}

    def figures(self, way: Reading) -> dict[str, Any]:
        """Figures and cost of one way of reading."""
        passages = self._passages(way)
        codes = quantize(passages.means, "int8")
        ids = [
            f"{book.id}#{i}" for book, bounds in zip(self.books, self._bounds, strict=True) for i in range(len(bounds))
        ]
        qrels = self.qrels()
        metrics = {}
        for asking in (BARE, TITLED):
            ranking = rank(quantize(self._asked(asking).means, "int8"), codes, DEPTH)
            metrics[asking] = figures(qrels, list(qrels), ids, ranking)
        return {"metrics": metrics, "queries": len(qrels), "chunks": len(ids)} | _cost(passages)

    def qrels(self) -> dict[str, dict[str, int]]:
        """The right chunks of every question."""
        found = {}
        for book, bounds in zip(self.books, self._bounds, strict=True):
            for i, question in enumerate(book.questions):
                found[f"{book.id}?{i}"] = {f"{book.id}#{place}": 1 for place in right_chunks(question, bounds)}
        return found

    def _asked(self, asking: str) -> Encoded:
        if asking not in self._queries:
            head = {BARE: "", TITLED: "{}: "}[asking]
            texts = [head.format(book.title) + q.text for book in self.books for q in book.questions]
            self._queries[asking] = self.encoder.texts(texts)
        return self._queries[asking]

    def _passages(self, way: Reading) -> Encoded:
        first = self._first_stream()
        if way.options:
            options = next(each for each in self.streams if way.options.items() <= each.items())
            return first if options is self.streams[0] else self._streamed(options)
        texts = []
        for book, bounds in zip(self.books, self._bounds, strict=True):
            head = f"{book.title} " if way.name == TITLE else ""
            texts += [head + book.text[start:stop] for start, stop in bounds]
        return self.encoder.texts(texts)

    def _first_stream(self) -> Encoded:
        """The first stream, which says what the chunks are."""
        if self._first is None:
            self._first = self._streamed(self.streams[0])
        return self._first

    def _streamed(self, options: Mapping[str, Any]) -> Encoded:
        found, bounds = streamed_chunks(self.encoder.embedder, [book.text for book in self.books], options)
        if self._bounds and bounds != self._bounds:
            raise InputError("a stream with another window cut the books into other chunks")
        self._bounds = bounds
        return found


def share_kept(results: Sequence[Mapping[str, Any]], metric: Callable[[Mapping[str, Any]], float]) -> dict[str, float]:
    """The share of full context's gain over chunks alone that each other way has, by label; empty without both."""
    scores = {result["way"]: metric(result) for result in results}
    if ALONE not in scores or FULL not in scores or scores[FULL] == scores[ALONE]:
        return {}
    gain = scores[FULL] - scores[ALONE]
    return {way: (score - scores[ALONE]) / gain for way, score in scores.items() if way not in (ALONE, FULL)}


def _each(
    ways: Sequence[Reading],
    made_of: Mapping[str, Any],
    make: Callable[[Reading], Mapping[str, Any]],
    results: Results,
) -> Iterator[Result]:
    for way in ways:
        about = {**made_of, "way": way.label, "options": {**made_of["options"], **way.options}}
        result = results.get("quality", about, lambda way=way: make(way))
        metrics = result["metrics"]
        shown = metrics if MAIN in metrics else metrics[TITLED]
        say(f"{result['task']}, {way.label}: nDCG@10 {100 * shown[MAIN]:.2f}")
        yield result


def _passages(encoder: EdgeEncoder, task: RetrievalTask, way: Reading, options: Mapping[str, Any]) -> Encoded:
    """Means of the passages, in the order of the corpus."""
    if way.name == ALONE:
        return encoder.texts(passage_texts(task, "off"))
    if way.name == TITLE:
        return encoder.texts(passage_texts(task, "title"))
    documents = [[task.corpus[place].text for place in places] for places in task.documents]
    if way.options:
        found = streamed_documents(encoder.embedder, documents, {**options, **way.options})
    else:
        found = encoder.documents(documents)
    means = np.empty_like(found.means)
    means[[place for places in task.documents for place in places]] = found.means  # from documents to corpus
    return Encoded(means, found.n_tokens, found.n_cut, found.n_windows, found.seconds)


def _cost(encoded: Encoded) -> dict[str, Any]:
    return {
        "tokens": encoded.n_tokens,
        "texts_cut": encoded.n_cut,
        "windows": encoded.n_windows,
        "seconds": encoded.seconds,
    }
