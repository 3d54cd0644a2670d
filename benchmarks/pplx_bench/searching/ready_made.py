"""Indexes made without reading or encoding, which say that nano made them, so that the commands open them."""

import hashlib
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from pplx_bench.searching.made_up import Chunks
from pplx_bench.searching.ours import build
from pplx_edge import ChunkVector, Embedder
from pplx_edge.weights.hub import BUILT_IN
from pplx_search.documents import Document, Piece
from pplx_search.null_baseline import measure_null_baseline
from pplx_search.settings import fingerprint_of, options_for, settings_of
from pplx_search.store import FileFacts, Generation, Scan, Store, text_digest

_FILES_A_COMMIT = 1000


def index_of_files(paths: Sequence[Path], folder: Path, home: Path, model: Embedder) -> None:
    """An index of small files below a folder, as they are now, each in one chunk."""
    settings = settings_of(BUILT_IN, model, options_for(model))
    rng = np.random.default_rng(0)
    with Store.open(home, write=True) as store:
        generation = store.vectors.use(fingerprint_of(settings), settings, model.dim)
        store.collections.add("default")
        scan = store.files.scan(store.collections.add_root("default", os.fsencode(folder)).id)
        waiting = iter(paths)
        while some := list(islice(waiting, _FILES_A_COMMIT)):
            with store.transaction():
                for path in some:
                    codes = rng.integers(-127, 128, model.dim).astype(np.int8)
                    _index_file(store, scan, generation, path, codes)
        store.compact()


def index_of_chunks(n_chunks: int, home: Path, model: Embedder, threads: int) -> list[str]:
    """An index of made-up chunks; returns questions that have their words."""
    chunks = Chunks(n_chunks, model.dim)
    build(chunks, np.concatenate(list(chunks.vectors())), home, settings_of(BUILT_IN, model, options_for(model)))
    with Store.open(home, write=True, threads=threads) as store:
        serving = store.vectors.serving
        assert serving is not None  # it was just made
        measure_null_baseline(store, model, serving)  # as indexing does at its end
    return chunks.questions(10)


def _index_file(store: Store, scan: Scan, generation: Generation, path: Path, codes: np.ndarray) -> None:
    content = path.read_bytes()
    facts = FileFacts.of(os.fsencode(path), os.stat(path))
    file_id = scan.see(facts).file_id
    store.files.begin(file_id)
    text = content.decode()
    document = Document(kind="text", pieces=(Piece(text),), markup="text")
    staged = store.files.stage(file_id, document, text_digest(document))
    embedding = store.vectors.begin(staged.text_id, generation).embedding_id
    vector = ChunkVector(
        index=0, start=0, stop=len(text), codes=codes, line=1, page=None, heading=(), tokens=1, position=""
    )
    store.vectors.append(embedding, [vector])
    store.vectors.complete(embedding)
    store.files.finish(file_id, facts, hashlib.sha256(content).digest())
