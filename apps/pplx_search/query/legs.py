"""The legs of a search. Each is a function of the query, the snapshot and the result of the filter.

- `dense`: the rows of sign bits closest to the query by Hamming distance, reordered by their dot product with the int8
  query, then scored by exact cosine in batches, until a whole batch adds nothing to the best `k`.
- `words`: BM25 of the chunks that contain any word of the query; in a large index, very frequent words are ignored.
- `phrase`: the chunks that contain the whole query, or its parts in double quotes, word for word.
- `name`: the texts of documents whose file name or title contains every word of the query. The ranking takes one chunk
  of each, which depends on the other legs.
"""

from itertools import islice

import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.text.lexical import match_expression
from pplx_search.ids import ChunkId, TextId
from pplx_search.query.bm25 import MAX_COUNTED
from pplx_search.query.full_text import all_words_expression, phrase_expression, word_expressions
from pplx_search.query.kernels import Kernel, asymmetric_scores, cosines, signs
from pplx_search.query.scanner import Scanner
from pplx_search.query.snapshot import Passing, Snapshot
from pplx_search.query.types import Query

_BATCH = 128  # chunks scored exactly between checks of whether to stop
_FEW = 0.2  # share of rows below which gathering them is cheaper than scanning all
_MAX_MATCHES = 1000
_MAX_NAMED = 100


def dense_leg(query: Query, snapshot: Snapshot, passing: Passing, scanner: Scanner) -> dict[ChunkId, float]:
    """Return the nearest chunks with their exact cosines, best first; nothing without a query vector."""
    if query.codes is None:
        return {}
    if query.codes.shape != (snapshot.dim,):
        raise InputError(
            f"the query vector has {len(query.codes)} dimensions, the index {snapshot.dim}; "
            "encode it with the same model"
        )
    codes = np.ascontiguousarray(query.codes)
    slots = _nearest_slots(codes, snapshot, passing, query.depth, scanner)
    chunk_ids, scores = _rescored(codes, slots, query.k, snapshot, scanner.kernel)
    order = np.lexsort((chunk_ids, -scores))
    return dict(zip(chunk_ids[order].tolist(), scores[order].tolist(), strict=True))


def word_leg(query: Query, snapshot: Snapshot, passing: Passing) -> dict[ChunkId, float]:
    """Return the chunks that contain any word of the query with their BM25, best first."""
    return _matches(_affordable_expression(query.words, snapshot), snapshot, passing)


def phrase_leg(query: Query, snapshot: Snapshot, passing: Passing) -> dict[ChunkId, float]:
    """Return the chunks that contain the query, or its quoted parts, word for word, with their BM25, best first."""
    return _matches(phrase_expression(query.words), snapshot, passing)


def named_texts(query: Query, snapshot: Snapshot, passing: Passing) -> list[TextId]:
    """Return the texts whose file name or title contains every word of the query, best first."""
    expression = all_words_expression(query.words)
    named = snapshot.texts_named(expression, _MAX_NAMED) if expression else []
    return [text_id for text_id in named if passing.texts[text_id]]


def _nearest_slots(codes: np.ndarray, snapshot: Snapshot, passing: Passing, depth: int, scanner: Scanner) -> np.ndarray:
    """Return the nearest rows of the bits file, those with the highest asymmetric score first."""
    bits = signs(codes[None])[0]
    if passing.slots is not None and passing.n_slots < _FEW * snapshot.n_slots:
        slots, _ = scanner.nearest_of(bits, snapshot.bits, depth, np.flatnonzero(passing.slots))
    else:
        slots, _ = scanner.nearest(bits, snapshot.bits, depth, passing.slots)
    return slots[np.argsort(-asymmetric_scores(scanner.kernel, codes, snapshot.bits[slots]), kind="stable")]


def _rescored(
    codes: np.ndarray, slots: np.ndarray, k: int, snapshot: Snapshot, kernel: Kernel
) -> tuple[np.ndarray, np.ndarray]:
    """Return chunk ids with their exact cosines, stopping after a batch that adds none to the best `k`."""
    chunk_ids, scores = np.zeros(0, np.int64), np.zeros(0)
    size = max(_BATCH, k)
    for start in range(0, len(slots), size):
        batch = snapshot.chunks_at(slots[start : start + size])
        batch_scores = cosines(kernel, codes, snapshot.codes(batch))
        kth_best = np.partition(scores, -k)[-k] if len(scores) >= k else -np.inf
        chunk_ids, scores = np.concatenate([chunk_ids, batch]), np.concatenate([scores, batch_scores])
        if batch_scores.max() <= kth_best:
            break
    return chunk_ids, scores


def _affordable_expression(words: str, snapshot: Snapshot) -> str:
    """Return an FTS5 expression that matches any of the words, ignoring very frequent ones.

    Frequent words add almost nothing to BM25, but ranking every chunk that contains them is slow. If all words are
    frequent, the expression requires all of them.
    """
    if snapshot.n_slots <= MAX_COUNTED:
        return match_expression(words)
    rare = (term for term in word_expressions(words) if _is_rare(term, snapshot))
    return " OR ".join(rare) or all_words_expression(words)


def _is_rare(term: str, snapshot: Snapshot) -> bool:
    return snapshot.n_chunks_with(term, MAX_COUNTED + 1) <= MAX_COUNTED


def _matches(expression: str, snapshot: Snapshot, passing: Passing) -> dict[ChunkId, float]:
    """Return the chunks that match an FTS5 expression and the filter, with BM25, best first; none if it is empty."""
    found: dict[ChunkId, float] = {}
    if expression:
        rows = snapshot.matches(expression)
        while len(found) < _MAX_MATCHES and (block := list(islice(rows, _MAX_MATCHES))):
            text_ids = snapshot.text_ids_of(np.array([chunk_id for chunk_id, _ in block], np.int64))
            found |= (row for row, passes in zip(block, passing.texts[text_ids], strict=True) if passes)
    return dict(islice(found.items(), _MAX_MATCHES))
