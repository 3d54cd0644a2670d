"""`pplx-edge bench stream`: streaming late chunking: memory and time, fidelity, retrieval, many small documents.

Each part is measured on real text: whole books, contextual retrieval tasks, and passages, from one folder.
"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pplx_edge
from pplx_bench import machine, report
from pplx_bench.naming import label_of
from pplx_bench.options import comma_list, one_of, require_writable
from pplx_bench.quality.systems import directory_digest
from pplx_bench.retrieval.beir import read_task, task_folders
from pplx_bench.retrieval.encoders import EdgeEncoder
from pplx_bench.shapes import SHAPES, make_checkpoint, shape_name
from pplx_bench.streams import plots, tables
from pplx_bench.streams.books import Book, books_file, read_books, sections
from pplx_bench.streams.fidelity import measure_fidelity
from pplx_bench.streams.many import measure_many, small_documents
from pplx_bench.streams.quality import MAX_TEXT_TOKENS, measure_books, measure_task, readings
from pplx_bench.streams.results import Result, Results
from pplx_bench.streams.sizes import METHODS, STREAM_CODE, SizeRun, is_flat, measure_sizes
from pplx_bench.workdir import default_work, fingerprint, say
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError
from pplx_edge.preparation import ResolvedModel, resolve_model
from pplx_edge.registry import BACKENDS
from pplx_edge.types import DEFAULT_CHUNK_TOKENS
from pplx_edge.weights import hub
from pplx_edge.weights.artifact import sha256
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import positive

WHATS = ("size", "fidelity", "quality", "many")
TASKS = ("squad-context", "factbook-context")
BOOKS = "books"
_HASH_DIGITS = 16
SEPARATORS = {"auto": None, "on": True, "off": False}
_UNITS = {"k": 1_000, "m": 1_000_000}


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("data", type=Path, metavar="FOLDER", help="holds longdocs.jsonl.gz and tasks in BEIR layout")
    parser.add_argument(
        "--what", type=one_of(WHATS), default=list(WHATS), metavar="W,W", help=f"{', '.join(WHATS)}; default all"
    )
    parser.add_argument("--model", default=BUILT_IN, metavar="MODEL", help=f"what is measured; default {BUILT_IN}")
    parser.add_argument("--shape", choices=SHAPES, help="instead of a model: random weights of this shape")
    parser.add_argument("--layers", type=positive, metavar="N", help="of the shape, a quick trial, not a result")
    parser.add_argument(
        "--backend", default="auto", choices=["auto", *BACKENDS], help="what it runs on (default: auto)"
    )
    parser.add_argument("--weights", metavar="FORMAT", help="mlx: what weights become while they are read")
    parser.add_argument("--threads", type=positive, metavar="N", help="onnx: processor threads; default all")
    _add_stream(parser.add_argument_group("stream"))
    _add_parts(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", type=Path, metavar="FILE", help="append results; those in it are not made again")
    group.add_argument("--plot", type=Path, metavar="DIR", help="write a picture a part here: stream-PART.svg")
    group.add_argument(
        "--work", type=Path, metavar="DIR", help="checkpoints of a shape, and logs; default in the cache"
    )


def run(args: Namespace) -> int:
    """Measures, writes and prints; 0 unless a stream failed or was not flat where it is long enough to say."""
    if args.json is not None:
        require_writable(args.json, ".jsonl")
    if args.plot is not None and not args.plot.is_dir():
        raise InputError(f"{args.plot}: no such directory; create it first")
    bench = _Bench(args)
    print(report.heading(bench.header), flush=True)
    sound = True
    for what in args.what:
        part = _PARTS[what]
        results = part.measure(bench)
        print(f"\n{part.table(results)}", flush=True)
        if args.plot is not None and part.draw is not None:
            part.draw(results, args.plot / f"stream-{what}.svg")
        sound = sound and part.sound(results)
    return 0 if sound else 1


def size(text: str) -> int:
    """`10k`, `1M` or a number, for argparse."""
    unit = _UNITS.get(text[-1:].lower(), 1)
    digits = text[:-1] if unit > 1 else text
    if not (digits.isascii() and digits.isdigit() and int(digits)):
        raise ArgumentTypeError(f"{text!r} is no number of tokens: 500, 10k and 1M are")
    return int(digits) * unit


def _sizes(text: str) -> list[int]:
    return [size(part) for part in comma_list(text) or [text]]


def _counts(text: str) -> list[int]:
    """`0,64,128`, for argparse."""
    found = []
    for part in comma_list(text) or [text]:
        if not (part.isascii() and part.isdigit()):
            raise ArgumentTypeError(f"{part!r} is not a whole number")
        found.append(int(part))
    return list(dict.fromkeys(found))


def _add_stream(group: Any) -> None:
    group.add_argument("--window", type=positive, metavar="N", help="tokens of a window; default the library's")
    group.add_argument("--margin", type=int, metavar="N", help="tokens of context on each side; default the library's")
    group.add_argument(
        "--chunk-tokens", type=positive, default=DEFAULT_CHUNK_TOKENS, metavar="N", help="default: %(default)s"
    )
    group.add_argument(
        "--separator", choices=SEPARATORS, default="auto", help="between chunks; auto: as the library does by itself"
    )


def _add_parts(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("size")
    group.add_argument(
        "--sizes", type=_sizes, default=[10_000, 100_000, 1_000_000], metavar="N,N", help="default 10k,100k,1M"
    )
    group.add_argument(
        "--methods", type=one_of(METHODS), default=list(METHODS), metavar="M,M", help=f"default {', '.join(METHODS)}"
    )
    group.add_argument("--macro-window", type=positive, default=8192, metavar="N", help="of torch (%(default)s)")
    group.add_argument("--overlap", type=int, default=256, metavar="N", help="of torch's macro windows (%(default)s)")
    group.add_argument("--limit", type=float, default=1800.0, metavar="S", help="skip what would take longer, seconds")
    group = parser.add_argument_group("fidelity")
    group.add_argument("--windows", type=_counts, metavar="N,N", help="default 512,1024,2048,4096; quality: 512,1024")
    group.add_argument(
        "--margins", type=_counts, default=[0, 32, 64, 128, 256, 512, 1024], metavar="N,N", help="0,32,…,1024"
    )
    group.add_argument("--sections", type=positive, default=8, metavar="N", help="of the books (default: %(default)s)")
    group = parser.add_argument_group("quality")
    group.add_argument("--tasks", type=comma_list, metavar="T,T", help=f"default {', '.join(TASKS)}, {BOOKS}")
    group.add_argument("--sticky", type=positive, default=64, metavar="N", help="tokens (default: %(default)s)")
    group.add_argument("--questions", type=positive, default=80, metavar="N", help="a book (default: %(default)s)")
    group.add_argument("--books", type=comma_list, metavar="ID,ID", help="only these documents of longdocs")
    group = parser.add_argument_group("many")
    group.add_argument("--documents", type=positive, default=3000, metavar="N", help="(default: %(default)s)")
    group.add_argument("--repeats", type=positive, default=5, metavar="N", help="timings (default: %(default)s)")


class _Bench:
    """What a run measures, opened when it is first needed."""

    def __init__(self, args: Namespace):
        if args.layers is not None and args.shape is None:
            raise InputError("--layers cuts a shape; name one with --shape")
        if not 0 <= args.overlap < args.macro_window:
            raise InputError(f"--overlap {args.overlap} is out of range: 0 to {args.macro_window - 1}")
        if args.margin is not None and args.margin < 0:
            raise InputError(f"--margin {args.margin} is out of range: at least 0")
        self.args = args
        self.work: Path = args.work or default_work()
        self.label = f"{shape_name(args.shape, args.layers)} shape, random" if args.shape else label_of(args.model)
        if args.backend != "auto":
            self.label += f", {args.backend} {args.weights or ''}".rstrip()
        self.threads: int = args.threads or machine.n_cores()
        self.header: dict[str, Any] = {"shape": args.shape, "layers": args.layers} | machine.run()
        self.results = Results(self.header, args.json)

    @cached_property
    def checkpoint(self) -> Path:
        """The directory with the weights as they were trained, or drawn."""
        if self.args.shape is not None:
            return make_checkpoint(self.work, self.args.shape, layers=self.args.layers)
        return hub.locate(self.args.model)

    @cached_property
    def resolved(self) -> ResolvedModel:
        """The model on its backend; a checkpoint is converted if the backend needs that."""
        return resolve_model(self.checkpoint, backend=self.args.backend)

    @cached_property
    def model(self) -> Path:
        """What is opened: the checkpoint's conversion."""
        return self.resolved.directory

    @cached_property
    def backend(self) -> str:
        """What the model runs on."""
        return self.resolved.backend.name

    @property
    def opening(self) -> dict[str, Any]:
        """How the model is opened."""
        threads = self.threads if "threads" in self.resolved.backend.options else self.args.threads
        return {"backend": self.backend, "threads": threads, "weights": self.args.weights}

    @cached_property
    def model_hash(self) -> str:
        """Of the files that are opened."""
        return directory_digest(self.model)

    @cached_property
    def embedder(self) -> Embedder:
        """The opened model."""
        return pplx_edge.load(self.model, **self.opening)

    @cached_property
    def books(self) -> list[Book]:
        """The long documents, or those that were named."""
        books = read_books(self.args.data)
        if self.args.books is None:
            return books
        by_id = {book.id: book for book in books}
        for name in self.args.books:
            if name not in by_id:
                raise InputError(f"no document {name!r}; there are: {', '.join(by_id)}")
        return [by_id[name] for name in self.args.books]

    @property
    def books_hash(self) -> str:
        """Of the file of long documents."""
        return sha256(books_file(self.args.data))[:_HASH_DIGITS]

    @property
    def options(self) -> dict[str, Any]:
        """What every stream is asked for, window and margin only where they were given."""
        named = {"window": self.args.window, "margin": self.args.margin}
        return {name: value for name, value in named.items() if value is not None} | self.cutting

    @property
    def cutting(self) -> dict[str, Any]:
        """The part of it that says what chunks are and what stands between them."""
        return {"chunk_tokens": self.args.chunk_tokens, "separator": SEPARATORS[self.args.separator]}

    def made_of(self, **more: Any) -> dict[str, Any]:
        """What the key of a result begins with."""
        about = {"label": self.label, "model_hash": self.model_hash, "code": fingerprint(*STREAM_CODE)}
        return about | self.cutting | more

    def measure_size(self) -> list[Result]:
        """See `sizes`."""
        return measure_sizes(
            SizeRun(
                label=self.label,
                model=self.model,
                checkpoint=self.checkpoint,
                model_hash=self.model_hash,
                books=books_file(self.args.data),
                books_hash=self.books_hash,
                sizes=self.args.sizes,
                methods=self.args.methods,
                options=self.options,
                chunk_tokens=self.args.chunk_tokens,
                macro_window=self.args.macro_window,
                overlap=self.args.overlap,
                threads=self.threads,
                opening=self.opening,
                limit=self.args.limit,
                logs=self.work / "logs",
            ),
            self.results,
        )

    def measure_fidelity(self) -> list[Result]:
        """See `fidelity`. Sections leave room for the separators between their chunks."""
        most = self.embedder.max_tokens
        n_tokens = most - 2 * (most // self.args.chunk_tokens) - self.args.chunk_tokens
        texts = sections(self.books, self.embedder.tokenizer, n_tokens, self.args.sections)
        windows = [window for window in self.args.windows or (512, 1024, 2048, 4096) if window <= most]
        about = self.made_of(books_hash=self.books_hash, sections=self.args.sections, books=self.args.books)
        return measure_fidelity(self.embedder, texts, windows, self.args.margins, self.cutting, about, self.results)

    def measure_quality(self) -> list[Result]:
        """See `quality`."""
        names = list(self.args.tasks or [*TASKS, BOOKS])
        tasks = [name for name in names if name != BOOKS]
        windows = self.args.windows or [512, 1024]
        encoder = EdgeEncoder(self.embedder, MAX_TEXT_TOKENS, self.embedder.max_tokens)
        about = self.made_of(options=self.cutting)
        spec = self.embedder.session.spec
        found = []
        for folder in task_folders([self.args.data], tasks) if tasks else []:
            ways = readings(windows, self.args.margin, self.args.sticky, spec, full=True)
            found += measure_task(encoder, read_task(folder), ways, self.cutting, about, self.results)
        if BOOKS in names:
            windows = list(dict.fromkeys([*windows, spec.max_tokens]))
            ways = readings(windows, self.args.margin, self.args.sticky, spec, full=False)
            about |= {"books_hash": self.books_hash, "books": self.args.books}
            found += measure_books(encoder, self.books, self.args.questions, ways, self.cutting, about, self.results)
        return found

    def measure_many(self) -> list[Result]:
        """See `many`."""
        texts = small_documents(task_folders([self.args.data], self.args.tasks), self.args.documents)
        about = self.made_of(
            documents=len(texts), tasks=self.args.tasks, repeats=self.args.repeats, threads=self.threads
        )
        say(f"many: {len(texts):,} documents, {self.args.repeats + 1} times each way")
        make = lambda: measure_many(self.embedder, texts, self.cutting, self.args.repeats)  # noqa: E731
        return [self.results.get("many", about, make)]


@dataclass(frozen=True, slots=True)
class _Part:
    """One thing that can be measured: how, its tables, its picture, and whether the command succeeded."""

    measure: Callable[[_Bench], list[Result]]
    table: Callable[[Sequence[Result]], str]
    draw: Callable[[Sequence[Result], Path], None] | None = None
    sound: Callable[[Sequence[Result]], bool] = lambda results: True


def _flat(results: Sequence[Result]) -> bool:
    streams = [result for result in results if result["method"] == METHODS[0]]
    return all("seconds" in result and is_flat(result) is not False for result in streams)


_PARTS = {
    "size": _Part(_Bench.measure_size, tables.size_tables, plots.draw_size, _flat),
    "fidelity": _Part(_Bench.measure_fidelity, tables.fidelity_table, plots.draw_fidelity),
    "quality": _Part(_Bench.measure_quality, tables.quality_tables, plots.draw_quality),
    "many": _Part(_Bench.measure_many, lambda results: tables.many_table(results[0])),
}
