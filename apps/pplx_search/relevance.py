"""Whether the answer to a question is among its hits: a chance, and a verdict when that is too small.

There is always a nearest passage, and how near it is depends on the question, the language, the model and what else
there is. So an index is asked first what nothing looks like in it: some of its own sentences, from all over it, are
asked of all documents but their own (the yardstick). The evidence for a question and how far it is beyond the yardstick
give the chance, by a logistic regression that was fitted to questions whose documents were in an index or were not:
`pplx-edge bench search DATA --what relevance` fits it, and tells the error on tasks that had no part in it.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge import Embedder
from pplx_edge.errors import InputError
from pplx_edge.text.structure import SENTENCE, Structure
from pplx_search.store import Evidence, Generation, Hit, Passage, Query, Store, Yardstick

CALIBRATION_FILE = "calibration.json"  # in the directory of an index: of a model that is not built in
FEATURES = ("prominence", "share_of_words", "prominence beyond", "share_of_words beyond")
_SENTENCES, _FEWEST = 64, 16
_SENTENCE_CHARS = range(20, 201)
_HITS = 50  # in which there should be other documents than a sentence's own
_GROWTH = 0.1  # share of chunks that may come or go before the yardstick is measured again
_LEAST_SPREAD = 1e-3  # of evidence among sentences


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The regression for a model's vectors: `coefficients` of FEATURES, and the least chance that counts as relevant.

    `made` says by what, of which tasks, and how often it errs.
    """

    model: str
    coefficients: tuple[float, ...]
    intercept: float
    least_chance: float
    made: Mapping[str, Any]

    def chance(self, evidence: Evidence, yardstick: Yardstick) -> float | None:
        """How likely it is that the answer is there, where half of all questions have one.

        None without vectors, and where the index has too few documents to tell what nothing looks like.
        """
        found = features(evidence, yardstick)
        if found is None or yardstick.n_sentences < _FEWEST:
            return None
        leaning = self.intercept + sum(c * value for c, value in zip(self.coefficients, found, strict=True))
        return 1 / (1 + math.exp(-leaning))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether hits are relevant, the chance of it, and why. Where it cannot be told (None), they count as relevant."""

    relevant: bool
    chance: float | None
    evidence: Evidence
    yardstick: Yardstick | None


def judge(store: Store, query: Query, hits: Sequence[Hit]) -> Verdict:
    """Whether the answer to a query is among its hits. What has the question word for word, or as its name, is."""
    evidence, serving = store.evidence(query, hits), store.vectors.serving
    yardstick = None if serving is None else store.vectors.yardstick(serving)
    calibration = None if serving is None else calibration_for(str(serving.settings.get("model")), store.directory)
    if calibration is None or yardstick is None:
        return Verdict(True, None, evidence, yardstick)
    chance = calibration.chance(evidence, yardstick)
    relevant = chance is None or evidence.exact or chance >= calibration.least_chance
    return Verdict(relevant, chance, evidence, yardstick)


def features(evidence: Evidence, yardstick: Yardstick) -> tuple[float, ...] | None:
    """FEATURES of a question's evidence; None without vectors. `beyond`: in standard deviations of the yardstick."""
    if evidence.prominence is None:
        return None
    return (
        evidence.prominence,
        evidence.share_of_words,
        (evidence.prominence - yardstick.prominence) / max(_LEAST_SPREAD, yardstick.prominence_spread),
        (evidence.share_of_words - yardstick.share_of_words) / max(_LEAST_SPREAD, yardstick.share_of_words_spread),
    )


def calibration_for(model: str, directory: Path) -> Calibration | None:
    """That of a model by its name: from the index's directory, else what comes with the app; None where there is none.

    Raises InputError for a file that is not a calibration.
    """
    own, built_in = directory / CALIBRATION_FILE, files("pplx_search") / CALIBRATION_FILE
    for path in (own, built_in):
        if path.is_file():
            found = _read(path.read_text(encoding="utf-8"), str(path))
            if found.model == model:
                return found
    return None


def measure_yardstick(store: Store, model: Embedder, generation: Generation) -> None:
    """Measures what nothing looks like in an index, and keeps it, unless little has changed since the last time."""
    n_chunks, before = store.n_chunks(), store.vectors.yardstick(generation)
    if before is not None and abs(n_chunks - before.n_chunks) <= _GROWTH * before.n_chunks:
        return
    found = list(_of_others(store, model, store.spread(_SENTENCES)))
    prominences = [each.prominence or 0.0 for each in found] or [0.0]
    shares = [each.share_of_words for each in found] or [0.0]
    yardstick = Yardstick(
        n_chunks=n_chunks,
        n_sentences=len(found),
        prominence=float(np.mean(prominences)),
        prominence_spread=float(np.std(prominences)),
        share_of_words=float(np.mean(shares)),
        share_of_words_spread=float(np.std(shares)),
    )
    store.vectors.set_yardstick(generation, yardstick)


def _of_others(store: Store, model: Embedder, passages: Sequence[Passage]) -> Iterator[Evidence]:
    """The evidence for a sentence of each passage in other documents than its own."""
    sentences = [_sentence(store.read(each.content, each.start, each.stop)) for each in passages]
    codes = model.encode_query(sentences, show_progress=False)
    for passage, sentence, row in zip(passages, sentences, codes, strict=True):
        query = Query(codes=np.asarray(row), words=sentence, k=_HITS)
        others = [hit for hit in store.search(query) if hit.content != passage.content]
        if sentence and others:
            yield store.evidence(query, others)


def _sentence(text: str) -> str:
    """The middle one of a passage's sentences that are neither very short nor very long; "" where there is no text."""
    edges = np.flatnonzero(Structure(text).breaks >= SENTENCE).tolist()
    parts = [text[a:b].strip() for a, b in zip([0, *edges], [*edges, len(text)], strict=True)]
    good = [part for part in parts if len(part) in _SENTENCE_CHARS] or [text.strip()[: _SENTENCE_CHARS[-1]]]
    return good[len(good) // 2]


def _read(text: str, name: str) -> Calibration:
    try:
        fields = json.loads(text)
        found = Calibration(**fields | {"coefficients": tuple(map(float, fields["coefficients"]))})
        if len(found.coefficients) != len(FEATURES):
            raise ValueError(f"{len(found.coefficients)} coefficients where {len(FEATURES)} are needed")
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{name}: not a calibration ({error}); make it again: bench search --what relevance"
        ) from error
    return found
