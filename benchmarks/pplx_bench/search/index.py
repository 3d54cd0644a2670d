"""Indexes made by the store's own calls, without reading files, and with random vectors where those do not matter."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge import ChunkVector, Embedder
from pplx_edge.weights.hub import BUILT_IN
from pplx_search.documents import Document, Piece
from pplx_search.embedding import TextEmbedder
from pplx_search.ids import FileId, TextId
from pplx_search.settings import fingerprint_of, options_for, settings_of
from pplx_search.store import FileFacts, Store, text_digest

_FILES_PER_COMMIT = 1000


class IndexWriter:
    """Adds documents below a root folder to a new index; call it in transactions of the store.

    `settings` are recorded as those that the vectors were made with.
    """

    def __init__(self, store: Store, root: bytes, settings: Mapping[str, Any], dim: int):
        self.store = store
        self.generation = store.vectors.use(fingerprint_of(dict(settings)), settings, dim)
        store.collections.add("default")
        self._scan = store.files.scan(store.collections.add_root("default", root).id)

    def stage(self, facts: FileFacts, text: str, markup: str = "markdown") -> tuple[FileId, TextId]:
        """Store the text of a document, and return the ids of the file and the text."""
        file_id = self._scan.see(facts).file_id
        self.store.files.begin(file_id)
        document = Document(kind="text", pieces=(Piece(text),), markup=markup)
        return file_id, self.store.files.stage(file_id, document, text_digest(document)).text_id

    def add(self, facts: FileFacts, text: str, vectors: Sequence[ChunkVector], digest: bytes, markup: str) -> None:
        """Store a document with its vectors. `digest` is the hash of the file's bytes."""
        file_id, text_id = self.stage(facts, text, markup)
        embedding_id = self.store.vectors.begin(text_id, self.generation).embedding_id
        self.store.vectors.append(embedding_id, vectors)
        self.store.vectors.complete(embedding_id)
        self.store.files.finish(file_id, facts, digest)


def index_documents(store: Store, documents: Iterable[tuple[bytes, str]], model: Embedder, name: str) -> None:
    """Embed the texts of some documents, each with its path, into a new index. `name` is that of the model."""
    options = options_for(model)
    writer = IndexWriter(store, b"/", settings_of(name, model, options), model.dim)
    staged = []
    with store.transaction():
        for number, (path, text) in enumerate(documents, start=1):
            facts = FileFacts(path=path, size=len(text), inode=number)
            staged.append((facts, *writer.stage(facts, text)))
    TextEmbedder(store, model, writer.generation, options).embed(text_id for _, _, text_id in staged)
    with store.transaction():
        for facts, file_id, text_id in staged:
            store.files.finish(file_id, facts, text_id.to_bytes(32, "little"))


def index_files(paths: Iterable[Path], folder: Path, home: Path, model: Embedder) -> None:
    """Index small files below a folder, each as one chunk with a random vector, as if `model` had made them."""
    rng = np.random.default_rng(0)
    with Store.open(home, write=True) as store:
        writer = IndexWriter(store, os.fsencode(folder), settings_of(BUILT_IN, model, options_for(model)), model.dim)
        waiting = iter(paths)
        while some := list(islice(waiting, _FILES_PER_COMMIT)):
            with store.transaction():
                for path in some:
                    content = path.read_bytes()
                    text, codes = content.decode(), rng.integers(-127, 128, model.dim).astype(np.int8)
                    vector = chunk_vector(0, 0, len(text), codes)
                    facts = FileFacts.of(os.fsencode(path), os.stat(path))
                    writer.add(facts, text, [vector], hashlib.sha256(content).digest(), "text")
        store.compact()


def chunk_vector(index: int, start: int, stop: int, codes: np.ndarray) -> ChunkVector:
    """Return the vector of a chunk, with a number in the place of its position in a stream."""
    return ChunkVector(index, start, stop, codes, index + 1, None, (), 1, str(index))
