"""Estimate the probability that the answer to a query is among its hits, and decide whether to show them.

Every query has a nearest passage. How similar that passage is depends on the query, its language, the model and the
rest of the index, so a fixed threshold does not work. We first measure what an *unanswerable* question looks like in
this index: sample its own sentences and query every document except the one each came from. The resulting scores are
the null baseline (`Yardstick`). The probability then comes from a logistic regression on the evidence for a query, both
as it is and in standard deviations above the null baseline. The regression was fitted to questions whose documents
either were or were not in an index. `pplx-edge bench search DATA --what relevance` fits it, and reports its error on
held-out tasks.
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

CALIBRATION_FILE = "calibration.json"  # in the index directory, for a model without a built-in calibration
FEATURES = ("prominence", "share_of_words", "prominence beyond", "share_of_words beyond")
_SENTENCES, _FEWEST = 64, 16
_SENTENCE_CHARS = range(20, 201)
_HITS = 50  # enough to include other documents than the one a sentence came from
_GROWTH = 0.1  # share of chunks added or removed before the null baseline is measured again
_LEAST_SPREAD = 1e-3  # lower bound for the standard deviations, to avoid division by zero


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A logistic regression for one model: coefficients of FEATURES, and the lowest probability that is relevant.

    `made` records how and on which tasks it was fitted, and its error rate.
    """

    model: str
    coefficients: tuple[float, ...]
    intercept: float
    least_chance: float
    made: Mapping[str, Any]

    def chance(self, evidence: Evidence, yardstick: Yardstick) -> float | None:
        """Return the probability that the answer is in the index, assuming that half of all questions have one.

        Returns None without vectors, or if the index is too small for a null baseline.
        """
        found = features(evidence, yardstick)
        if found is None or yardstick.n_sentences < _FEWEST:
            return None
        leaning = self.intercept + sum(c * value for c, value in zip(self.coefficients, found, strict=True))
        return 1 / (1 + math.exp(-leaning))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The relevance of hits, with the probability and the evidence. If it is unknown (None), they are relevant."""

    relevant: bool
    chance: float | None
    evidence: Evidence
    yardstick: Yardstick | None


def judge(store: Store, query: Query, hits: Sequence[Hit]) -> Verdict:
    """Judge whether the answer to a query is among its hits.

    An exact phrase match or a file name match always counts as relevant.
    """
    evidence, serving = store.evidence(query, hits), store.vectors.serving
    yardstick = None if serving is None else store.vectors.yardstick(serving)
    calibration = None if serving is None else calibration_for(str(serving.settings.get("model")), store.directory)
    if calibration is None or yardstick is None:
        return Verdict(True, None, evidence, yardstick)
    chance = calibration.chance(evidence, yardstick)
    relevant = chance is None or evidence.exact or chance >= calibration.least_chance
    return Verdict(relevant, chance, evidence, yardstick)


def features(evidence: Evidence, yardstick: Yardstick) -> tuple[float, ...] | None:
    """Return the FEATURES of the evidence, or None without vectors.

    The `beyond` features are in standard deviations above the null baseline.
    """
    if evidence.prominence is None:
        return None
    return (
        evidence.prominence,
        evidence.share_of_words,
        (evidence.prominence - yardstick.prominence) / max(_LEAST_SPREAD, yardstick.prominence_spread),
        (evidence.share_of_words - yardstick.share_of_words) / max(_LEAST_SPREAD, yardstick.share_of_words_spread),
    )


def calibration_for(model: str, directory: Path) -> Calibration | None:
    """Return the calibration of a model, from the index directory or built into the app, or None if there is none.

    Raises InputError if a calibration file is invalid.
    """
    own, built_in = directory / CALIBRATION_FILE, files("pplx_search") / CALIBRATION_FILE
    for path in (own, built_in):
        if path.is_file():
            found = _read(path.read_text(encoding="utf-8"), str(path))
            if found.model == model:
                return found
    return None


def measure_yardstick(store: Store, model: Embedder, generation: Generation) -> None:
    """Measure and store the null baseline of an index, unless the index has changed little since the last time."""
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
    """Yield the evidence for a sentence of each passage, from all documents except the one it came from."""
    sentences = [_sentence(store.read(each.content, each.start, each.stop)) for each in passages]
    codes = model.encode_query(sentences, show_progress=False)
    for passage, sentence, row in zip(passages, sentences, codes, strict=True):
        query = Query(codes=np.asarray(row), words=sentence, k=_HITS)
        others = [hit for hit in store.search(query) if hit.content != passage.content]
        if sentence and others:
            yield store.evidence(query, others)


def _sentence(text: str) -> str:
    """Return the middle sentence of a passage, ignoring very short and very long ones; "" if there is no text."""
    edges = np.flatnonzero(Structure(text).breaks >= SENTENCE).tolist()
    parts = [text[a:b].strip() for a, b in zip([0, *edges], [*edges, len(text)], strict=True)]
    good = [part for part in parts if len(part) in _SENTENCE_CHARS] or [text.strip()[: _SENTENCE_CHARS[-1]]]
    return good[len(good) // 2]


def _read(text: str, name: str) -> Calibration:
    try:
        fields = json.loads(text)
        found = Calibration(**fields | {"coefficients": tuple(map(float, fields["coefficients"]))})
        if len(found.coefficients) != len(FEATURES):
            raise ValueError(f"expected {len(FEATURES)} coefficients, got {len(found.coefficients)}")
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{name}: invalid calibration ({error}); create it again with: pplx-edge bench search DATA --what relevance"
        ) from error
    return found
