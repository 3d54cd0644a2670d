"""Build small indexes for tests: texts of a few words, with vectors that are a function of the text."""

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pplx_edge import ChunkVector
from pplx_search.documents import Document, Piece
from pplx_search.ids import TextId
from pplx_search.store import FileFacts, FileState, Generation, Root, Scan, Store, text_digest

DIM = 128
CHUNK_CHARS = 24
WORDS = ("kiwi", "plum", "pear", "fig", "lime", "quince", "melon", "date", "grape", "peach")


def make_text(seed: int, n_words: int) -> str:
    """Return some words, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), n_words))


def make_codes(text: str, index: int, fingerprint: str, dim: int = DIM) -> np.ndarray:
    """Return the vector of a chunk of a text, int8 `[dim]`, which is the same in each call."""
    seed = zlib.crc32(f"{fingerprint} {index} {text}".encode("utf-8", "surrogatepass"))
    return np.random.default_rng(seed).integers(-127, 128, dim).astype(np.int8)


def chunk_vectors(text: str, fingerprint: str, dim: int = DIM, position: str | None = None) -> Iterator[ChunkVector]:
    """Yield the chunks of a text after a position, as a stream does."""
    for index in range(int(position or 0), -(-len(text) // CHUNK_CHARS)):
        start = index * CHUNK_CHARS
        yield ChunkVector(
            index=index,
            start=start,
            stop=min(len(text), start + CHUNK_CHARS),
            codes=make_codes(text, index, fingerprint, dim),
            line=1 + text.count("\n", 0, start),
            page=None,
            heading=("Fruit", "Basket") if index % 2 else (),
            tokens=6,
            position=str(index + 1),
        )


def document(text: str, part: str = "", title: str = "", kind: str = "text", **metadata: str) -> Document:
    """Return a document of one piece."""
    return Document(kind=kind, pieces=(Piece(text),), part=part, title=title, metadata=metadata)


def facts(path: str | bytes, version: int = 0, inode: int = 0) -> FileFacts:
    """Return plausible metadata of a file."""
    name = path if isinstance(path, bytes) else path.encode()
    number = inode or zlib.crc32(name) + 1
    return FileFacts(path=name, size=100 + version, mtime_ns=version * 10**9, inode=number, device=1)


def sha256(documents: Sequence[Document]) -> bytes:
    """Return a hash that stands in for that of the file's bytes."""
    return hashlib.sha256(b"".join(each.part.encode() + text_digest(each) for each in documents)).digest()


def embed(store: Store, text_id: TextId, generation: Generation, at_once: int = 3, most: int | None = None) -> bool:
    """Append vectors of a text in at most `most` transactions of `at_once` chunks. Returns True if it is complete."""
    progress = store.vectors.begin(text_id, generation)
    if progress.complete:
        return True
    text = store.read(text_id)
    waiting = list(chunk_vectors(text, generation.fingerprint, generation.dim, progress.position))
    for count, start in enumerate(range(0, len(waiting), at_once)):
        if count == most:
            return False
        store.vectors.append(progress.embedding_id, waiting[start : start + at_once])
    store.vectors.complete(progress.embedding_id)
    return True


def index_file(
    store: Store, scan: Scan, about: FileFacts, documents: Sequence[Document], most: int | None = None
) -> FileState:
    """Index a file and return its state in the scan. With `most` (see `embed`), it may remain unfinished."""
    seen = scan.see(about)
    if seen.state in (FileState.UNCHANGED, FileState.MOVED, FileState.FAILED, FileState.SKIPPED):
        return seen.state
    if store.files.adopt(seen.file_id, about, sha256(documents)):
        return FileState.UNCHANGED
    generation = store.vectors.serving
    assert generation is not None
    store.files.begin(seen.file_id)
    complete = True
    for each in documents:
        staged = store.files.stage(seen.file_id, each, text_digest(each))
        complete &= embed(store, staged.text_id, generation, most=most)
    if complete:
        store.files.finish(seen.file_id, about, sha256(documents))
    return seen.state


@dataclass
class Basket:
    """A store with a generation and a root, for indexing files one at a time."""

    store: Store
    root: Root = field(init=False)
    generation: Generation = field(init=False)

    def __post_init__(self) -> None:
        self.generation = self.store.vectors.use("model-1", {"chunk_tokens": 6}, DIM)
        self.store.collections.add("home")
        self.root = self.store.collections.add_root("home", b"/home")

    def index(self, about: FileFacts, *documents: Document, most: int | None = None) -> FileState:
        """Index a file and return its state in the scan."""
        return index_file(self.store, self.store.files.scan(self.root.id), about, documents, most)

    def add(self, path: str, text: str, version: int = 0, most: int | None = None) -> FileState:
        """Index a file that is one document."""
        return self.index(facts(path, version), document(text), most=most)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Return the cosine of two int8 vectors, computed in float64."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / lengths) if lengths else 0.0
