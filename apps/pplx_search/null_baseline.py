"""Measure the null baseline of an index: what the evidence looks like for questions that it cannot answer.

The questions are sentences of the index itself, searched in every text except the one each came from.
"""

import numpy as np

from pplx_edge import Embedder
from pplx_edge.text.structure import SENTENCE, Structure
from pplx_search.query.types import NullBaseline, Query
from pplx_search.store import Generation, Store

_SENTENCES = 64
_SENTENCE_CHARS = range(20, 201)
_HITS = 50  # enough to include other texts than the one a sentence came from
_GROWTH = 0.1  # share of chunks added or removed before the null baseline is measured again


def measure_null_baseline(store: Store, model: Embedder, generation: Generation) -> None:
    """Measure and store the null baseline of an index, unless the index has changed little since the last time."""
    n_chunks, before = store.n_chunks(), store.vectors.null_baseline(generation)
    if before is not None and abs(n_chunks - before.n_chunks) <= _GROWTH * before.n_chunks:
        return
    passages = store.sample_passages(_SENTENCES)
    sentences = [sentence_of(passage.text) for passage in passages]
    codes = model.encode_query(sentences, show_progress=False)
    found = []
    for passage, sentence, row in zip(passages, sentences, codes, strict=True):
        query = Query(codes=np.asarray(row), words=sentence, k=_HITS)
        if sentence and (evidence := store.evidence_elsewhere(query, passage.text_id)):
            found.append(evidence)
    cosine_z = [evidence.cosine_z or 0.0 for evidence in found] or [0.0]
    bm25_share = [evidence.bm25_share for evidence in found] or [0.0]
    baseline = NullBaseline(
        n_chunks=n_chunks,
        n_sentences=len(found),
        cosine_z_mean=float(np.mean(cosine_z)),
        cosine_z_std=float(np.std(cosine_z)),
        bm25_share_mean=float(np.mean(bm25_share)),
        bm25_share_std=float(np.std(bm25_share)),
    )
    store.vectors.set_null_baseline(generation, baseline)


def sentence_of(text: str) -> str:
    """Return the middle sentence of a passage, ignoring very short and very long ones; "" if there is no text."""
    edges = np.flatnonzero(Structure(text).breaks >= SENTENCE).tolist()
    parts = [text[a:b].strip() for a, b in zip([0, *edges], [*edges, len(text)], strict=True)]
    good = [part for part in parts if len(part) in _SENTENCE_CHARS] or [text.strip()[: _SENTENCE_CHARS[-1]]]
    return good[len(good) // 2]
