"""nDCG@10 of chunks encoded by themselves, after the title, in full context, and streamed, with and without headings.

On contextual tasks the chunks are the passages of the task; on whole books they are those of the stream itself.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from pplx_bench.metering import metered
from pplx_bench.options import comma_list, list_of
from pplx_bench.results import Result, Results
from pplx_bench.retrieval.beir import RetrievalTask, read_task, task_folders
from pplx_bench.retrieval.encoders import EdgeEncoder, Encoded, document_texts, passage_texts
from pplx_bench.retrieval.metrics import DEPTH, MAIN, evaluate, evaluate_task
from pplx_bench.retrieval.ranking import rank_means
from pplx_bench.stream.books import Book, asked, relevant_chunks
from pplx_bench.stream.setup import Setup
from pplx_bench.workdir import say
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.text.batching import collate
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import StreamOptions, TextChunk
from pplx_edge.vectors.late_chunking import ChunkTokens, RunningMean, WindowSizes, plan_windows
from pplx_kit.options import natural, positive

ALONE, TITLE, FULL, STREAM, HEADINGS = "alone", "title", "full", "stream", "stream headings"
TASKS, BOOKS = ("squad-context", "factbook-context"), "books"
BARE, TITLED = "sentence", "title: sentence"  # the two forms of a question about a book
MAX_TEXT_TOKENS = 512
_GAP = "\n"  # between two given chunks, if there is no separator
Bounds = list[list[tuple[int, int]]]  # [start, stop) of the chunks of each document


@dataclass(frozen=True, slots=True)
class Reading:
    """A way to encode chunks: its name, and the options of a stream (empty: no stream)."""

    name: str
    options: Mapping[str, Any]

    @property
    def label(self) -> str:
        """The name with window and margin."""
        return f"{self.name} {self.options['window']}/{self.options['margin']}" if self.options else self.name


def add_options(group: Any) -> None:
    """Add the options of this measurement."""
    add = group.add_argument
    names = [*TASKS, BOOKS]
    add(
        "--tasks",
        type=comma_list,
        default=names,
        metavar="T,T",
        help=f"Tasks whose passages are parts of documents, and the word {BOOKS} for longdocs.jsonl.gz.",
    )
    add(
        "--windows",
        type=list_of(positive),
        default=[512, 1024],
        metavar="N,N",
        help="Sizes of windows to compare, in tokens; encode_stream has 4096 by default.",
    )
    add(
        "--margin",
        type=natural,
        metavar="N",
        help="Tokens of context at each end of a window (default: 256, less in windows below 2048 tokens).",
    )
    add(
        "--heading-tokens",
        type=positive,
        default=64,
        metavar="N",
        help="Tokens of title and headings that a window repeats, in the runs with them.",
    )
    add(
        "--questions",
        type=positive,
        default=80,
        metavar="N",
        help="Questions about each book: sentences that were taken out of it.",
    )
    add(
        "--books",
        type=comma_list,
        metavar="ID,ID",
        help="Only use the documents with these IDs in longdocs.jsonl.gz (default: all).",
    )


def measure(setup: Setup) -> list[Result]:
    """Return a result for each task, or the books, and each way to encode its chunks."""
    args, spec = setup.args, setup.embedder.session.spec
    tasks = [name for name in args.tasks if name != BOOKS]
    encoder = EdgeEncoder(setup.embedder, MAX_TEXT_TOKENS, setup.embedder.max_tokens)
    options, inputs = setup.chunk_options, setup.inputs(options=setup.chunk_options)
    found: list[Result] = []
    for folder in task_folders([args.data], tasks) if tasks else []:
        ways = readings(args.windows, args.margin, args.heading_tokens, spec, full=True)
        found += measure_task(encoder, read_task(folder), ways, options, inputs, setup.results)
    if BOOKS in args.tasks:
        windows = list(dict.fromkeys([*args.windows, spec.max_tokens]))
        ways = readings(windows, args.margin, args.heading_tokens, spec, full=False)
        library = Library(encoder, setup.books(args.books), args.questions, ways, options)
        about = {"books_hash": setup.books_hash, "books": args.books, "task": BOOKS, "questions": args.questions}
        found += _each(ways, inputs | about, library.figures, setup.results)
    return found


def readings(
    windows: Sequence[int], margin: int | None, heading_tokens: int, spec: ModelSpec, *, full: bool
) -> list[Reading]:
    """Return every way to encode chunks, with a stream in each window without and with repeated headings.

    The margin defaults to the library's.
    """
    margins = {w: WindowSizes.of(StreamOptions(window=w, margin=margin), spec).margin for w in windows}
    found = [Reading(name, {}) for name in (ALONE, TITLE, *((FULL,) if full else ()))]
    for name, n_tokens in ((STREAM, 0), (HEADINGS, heading_tokens)):
        found += [Reading(name, {"window": w, "margin": margins[w], "heading_tokens": n_tokens}) for w in windows]
    return found


def measure_task(
    encoder: EdgeEncoder,
    task: RetrievalTask,
    ways: Sequence[Reading],
    options: Mapping[str, Any],
    inputs: Mapping[str, Any],
    results: Results,
) -> Iterator[Result]:
    """Yield a result for each way to encode a task. Raises InputError if its passages are not pieces of documents."""
    if not task.is_contextual:
        raise InputError(f"{task.name}: its passages are not pieces of documents; name contextual tasks with --tasks")
    queries = cache(lambda: encoder.texts([query.text for query in task.queries]).means)

    def figures(way: Reading) -> dict[str, Any]:
        if way.name in (ALONE, TITLE):
            passages = encoder.texts(passage_texts(task, "off" if way.name == ALONE else "title"))
        elif way.name == FULL:
            passages = encoder.documents(document_texts(task)).in_corpus_order(task.documents)
        else:
            streamed = streamed_documents(encoder.embedder, document_texts(task), {**options, **way.options})
            passages = streamed.in_corpus_order(task.documents)
        metrics = evaluate_task(task, rank_means(queries(), passages.means, "int8", DEPTH))
        return {"metrics": metrics, "queries": len(task.queries), "chunks": len(task.corpus)} | _cost(passages)

    about = {**inputs, "task": task.name, "task_hash": task.digest[:16]}
    return _each(ways, about, figures, results)


class Library:
    """Books without the sentences that are asked for, in the chunks of the first stream among the ways."""

    def __init__(
        self,
        encoder: EdgeEncoder,
        books: Sequence[Book],
        n_questions: int,
        ways: Sequence[Reading],
        options: Mapping[str, Any],
    ):
        self.encoder, self.options = encoder, options
        self.books = [asked(book, n_questions) for book in books]
        self.first = next(way for way in ways if way.options)
        self._streamed, self._asked = cache(self._stream), cache(self._ask)

    def figures(self, way: Reading) -> dict[str, Any]:
        """Return the metrics of both forms of a question, and the cost, for one way to encode the chunks."""
        _, bounds = self._streamed(**self.first.options)
        passages = self._passages(way, bounds)
        both = list(zip(self.books, bounds, strict=True))
        ids = [f"{book.id}#{i}" for book, found in both for i in range(len(found))]
        qrels = {
            f"{book.id}?{i}": {f"{book.id}#{chunk}": 1 for chunk in relevant_chunks(question, found)}
            for book, found in both
            for i, question in enumerate(book.questions)
        }
        metrics = {}
        for form in (BARE, TITLED):
            ranking = rank_means(self._asked(form), passages.means, "int8", DEPTH)
            metrics[form] = evaluate(qrels, list(qrels), ids, ranking)
        return {"metrics": metrics, "queries": len(qrels), "chunks": len(ids)} | _cost(passages)

    def _ask(self, form: str) -> np.ndarray:
        heads = [f"{book.title}: " if form == TITLED else "" for book in self.books]
        texts = [head + q.text for head, book in zip(heads, self.books, strict=True) for q in book.questions]
        return self.encoder.texts(texts).means

    def _passages(self, way: Reading, bounds: Bounds) -> Encoded:
        if way.options:
            passages, found = self._streamed(**way.options)
            if found != bounds:
                raise InputError("a stream with another window cut the books into other chunks")
            return passages
        texts = []
        for book, found in zip(self.books, bounds, strict=True):
            head = f"{book.title} " if way.name == TITLE else ""
            texts += [head + book.text[start:stop] for start, stop in found]
        return self.encoder.texts(texts)

    def _stream(self, **options: Any) -> tuple[Encoded, Bounds]:
        texts = [book.text for book in self.books]
        return streamed_chunks(self.encoder.embedder, texts, {**self.options, **options})


def share_kept(results: Sequence[Mapping[str, Any]], metric: Callable[[Mapping[str, Any]], float]) -> dict[str, float]:
    """Return the share of full context's gain over chunks by themselves that each other way keeps, by label."""
    scores = {result["way"]: metric(result) for result in results}
    if ALONE not in scores or FULL not in scores or scores[FULL] == scores[ALONE]:
        return {}
    gain = scores[FULL] - scores[ALONE]
    return {way: (score - scores[ALONE]) / gain for way, score in scores.items() if way not in (ALONE, FULL)}


def streamed_chunks(embedder: Embedder, documents: Sequence[str], options: Mapping[str, Any]) -> tuple[Encoded, Bounds]:
    """Return the means of the chunks of every document, and where the chunks are."""
    embedder, session = metered(embedder)
    means, bounds, started = [], [], time.perf_counter()
    for text in documents:
        vectors = list(embedder.encode_stream(text, "float32", options=StreamOptions(**options)))
        means += [vector.codes for vector in vectors]
        bounds.append([(vector.start, vector.stop) for vector in vectors])
    seconds = time.perf_counter() - started
    return Encoded(np.stack(means), session.n_tokens, 0, session.n_passes, seconds), bounds


def streamed_documents(embedder: Embedder, documents: Sequence[Sequence[str]], options: Mapping[str, Any]) -> Encoded:
    """Return the means of given chunks, from the same windows as a stream of exactly these chunks."""
    embedder, session = metered(embedder)
    stream_options = StreamOptions(**options)
    sizes = WindowSizes.of(stream_options, session.spec)
    separates = session.spec.contextual if stream_options.separator is None else stream_options.separator
    sep_id = embedder.tokenizer.sep_id
    means, started = [], time.perf_counter()
    for chunks in documents:
        tokens, running = _tokens(chunks, embedder.tokenizer, separates), RunningMean()
        for window in plan_windows(tokens, sizes, sep_id if separates else None):
            found = session.span_means(collate([window.row], sep_id))
            closed = [running.add(part, mean) for part, mean in zip(window.parts, found, strict=True)]
            means += [mean for mean in closed if mean is not None]
    seconds = time.perf_counter() - started
    return Encoded(np.stack(means), session.n_tokens, 0, session.n_passes, seconds)


def _tokens(chunks: Sequence[str], tokenizer: Tokenizer, separates: bool) -> Iterator[ChunkTokens]:
    """Yield the chunks as a stream passes them to its windows, one after another in a document without headings."""
    position = 0
    for i, text in enumerate(chunks):
        gap = _GAP if i else ""
        start, position = position + len(gap), position + len(gap) + len(text)
        chunk = TextChunk(start, position, text, gap, line=i + 1, page=None, heading=(), digest="")
        (row,) = tokenizer.text_rows([text if separates else gap + text])
        yield ChunkTokens(chunk, row.ids, np.empty(0, np.int64))


def _each(
    ways: Sequence[Reading],
    inputs: Mapping[str, Any],
    make: Callable[[Reading], Mapping[str, Any]],
    results: Results,
) -> Iterator[Result]:
    for way in ways:
        made_of = {"what": "quality", **inputs, "way": way.label, "options": {**inputs["options"], **way.options}}
        result = results.get(made_of, lambda way=way: make(way))
        metrics = result["metrics"]
        say(f"{result['task']}, {way.label}: nDCG@10 {100 * metrics.get(TITLED, metrics)[MAIN]:.2f}")
        yield result


def _cost(encoded: Encoded) -> dict[str, Any]:
    return {
        "tokens": encoded.n_tokens,
        "texts_cut": encoded.n_cut,
        "windows": encoded.n_windows,
        "seconds": encoded.seconds,
    }
