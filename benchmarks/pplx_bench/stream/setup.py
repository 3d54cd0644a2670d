"""The model, the texts and the results of `bench stream`, each opened when it is first needed."""

from argparse import Namespace
from functools import cached_property
from pathlib import Path
from typing import Any

import pplx_edge
from pplx_bench import machine
from pplx_bench.naming import label_of
from pplx_bench.quality.systems import directory_digest
from pplx_bench.results import Results
from pplx_bench.shapes import make_checkpoint, shape_name
from pplx_bench.stream.books import Book, books_file, read_books
from pplx_bench.workdir import default_work, fingerprint
from pplx_edge.embedder import Embedder
from pplx_edge.errors import InputError
from pplx_edge.preparation import ResolvedModel, resolve_model
from pplx_edge.weights import hub
from pplx_edge.weights.artifact import sha256

SEPARATORS = {"auto": None, "on": True, "off": False}
# Results measured with other versions of these modules are not reused.
STREAM_CODE = (
    "pplx_edge.streaming",
    "pplx_edge.vectors.late_chunking",
    "pplx_edge.text.chunking",
    "pplx_edge.text.structure",
)


class Setup:
    """Everything that a measurement needs, from the options of the command."""

    def __init__(self, args: Namespace):
        if args.layers is not None and args.shape is None:
            raise InputError("--layers cuts a shape; name one with --shape")
        self.args = args
        self.work: Path = args.work or default_work()
        self.label = f"{shape_name(args.shape, args.layers)} shape, random" if args.shape else label_of(args.model)
        if args.backend != "auto":
            self.label += f", {args.backend} {args.weights or ''}".rstrip()
        self.threads: int = args.threads or machine.n_cores()
        self.header: dict[str, Any] = {"shape": args.shape, "layers": args.layers} | machine.run()
        self.results = Results("stream", self.header, args.json)

    @cached_property
    def checkpoint(self) -> Path:
        """The directory with the trained or random weights."""
        if self.args.shape is not None:
            return make_checkpoint(self.work, self.args.shape, layers=self.args.layers)
        return hub.locate(self.args.model)

    @cached_property
    def resolved(self) -> ResolvedModel:
        """The model on its backend; a checkpoint is converted if the backend needs that."""
        return resolve_model(self.checkpoint, backend=self.args.backend)

    @property
    def model(self) -> Path:
        """The directory that is opened."""
        return self.resolved.directory

    @property
    def opening(self) -> dict[str, Any]:
        """The options for opening the model."""
        threads = self.threads if "threads" in self.resolved.backend.options else self.args.threads
        return {"backend": self.resolved.backend.name, "threads": threads, "weights": self.args.weights}

    @cached_property
    def model_hash(self) -> str:
        """A hash of the files that are opened."""
        return directory_digest(self.model)

    @cached_property
    def embedder(self) -> Embedder:
        """The open model."""
        return pplx_edge.load(self.model, **self.opening)

    @cached_property
    def books_file(self) -> Path:
        """The file of long documents."""
        return books_file(self.args.data)

    @property
    def books_hash(self) -> str:
        """A hash of the file of long documents."""
        return sha256(self.books_file)[:16]

    def books(self, names: list[str] | None) -> list[Book]:
        """Return the long documents with these ids, all by default. Raises InputError for an unknown id."""
        books = {book.id: book for book in read_books(self.books_file)}
        for name in names or ():
            if name not in books:
                raise InputError(f"no document {name!r}; there are: {', '.join(books)}")
        return [books[name] for name in names or books]

    @property
    def chunk_options(self) -> dict[str, Any]:
        """The stream options that determine the chunks and what separates them."""
        return {"chunk_tokens": self.args.chunk_tokens, "separator": SEPARATORS[self.args.separator]}

    def inputs(self, **more: Any) -> dict[str, Any]:
        """Return the inputs that a result is found by in the file of results."""
        about = {"label": self.label, "model_hash": self.model_hash, "code": fingerprint(*STREAM_CODE)}
        return about | self.chunk_options | more
