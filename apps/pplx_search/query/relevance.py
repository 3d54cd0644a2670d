"""Estimate the probability that a query is answered by its hits, and decide whether to show them.

Every query has a nearest passage. How similar that passage is depends on the query, its language, the model and the
rest of the index, so a fixed threshold does not work. An index therefore has a null baseline: the evidence for
questions that it cannot answer (see `pplx_search.null_baseline`). The probability comes from a logistic regression on
the evidence for a query, both as it is and in standard deviations above the null baseline. The regression was fitted to
questions whose documents either were or were not in an index. `pplx-edge bench search relevance DATA` fits it,
and reports its error on held-out tasks.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from pplx_edge.errors import InputError
from pplx_search.query.types import Answer, Evidence, NullBaseline

CALIBRATION_FILE = "calibration.json"  # in the index directory, for a model without a built-in calibration
FEATURES = ("cosine_z", "bm25_share", "cosine_z above baseline", "bm25_share above baseline")
MIN_SENTENCES = 16  # of a null baseline
_MIN_STD = 1e-3  # lower bound for the standard deviations, to avoid division by zero


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

    def chance(self, evidence: Evidence, baseline: NullBaseline) -> float | None:
        """Return the probability that the answer is in the index, assuming that half of all questions have one.

        Returns None without vectors, or if the index is too small for a null baseline.
        """
        values = features(evidence, baseline)
        if values is None or baseline.n_sentences < MIN_SENTENCES:
            return None
        logit = self.intercept + sum(c * value for c, value in zip(self.coefficients, values, strict=True))
        return 1 / (1 + math.exp(-logit))


@dataclass(frozen=True, slots=True)
class Relevance:
    """The decision to show hits, and the probability that they answer the query (None: unknown, and hits are shown)."""

    relevant: bool
    chance: float | None


def judge(answer: Answer, directory: Path) -> Relevance:
    """Return the relevance of an answer. `directory` is that of the index, which may have a calibration of its own.

    An exact phrase match or a file name match always counts as relevant.
    """
    calibration = None if answer.model is None else calibration_for(answer.model, directory)
    if calibration is None or answer.null_baseline is None:
        return Relevance(True, None)
    chance = calibration.chance(answer.evidence, answer.null_baseline)
    return Relevance(chance is None or answer.evidence.exact or chance >= calibration.least_chance, chance)


def features(evidence: Evidence, baseline: NullBaseline) -> tuple[float, ...] | None:
    """Return the FEATURES of the evidence, or None without vectors."""
    if evidence.cosine_z is None:
        return None
    return (
        evidence.cosine_z,
        evidence.bm25_share,
        (evidence.cosine_z - baseline.cosine_z_mean) / max(_MIN_STD, baseline.cosine_z_std),
        (evidence.bm25_share - baseline.bm25_share_mean) / max(_MIN_STD, baseline.bm25_share_std),
    )


def calibration_for(model: str, directory: Path) -> Calibration | None:
    """Return the calibration of a model, from the index directory or built into the app, or None if there is none.

    Raises InputError if a calibration file is invalid.
    """
    own, built_in = directory / CALIBRATION_FILE, files("pplx_search") / CALIBRATION_FILE
    for path in (own, built_in):
        if path.is_file():
            calibration = _parse(path.read_text(encoding="utf-8"), str(path))
            if calibration.model == model:
                return calibration
    return None


def _parse(text: str, name: str) -> Calibration:
    try:
        fields = json.loads(text)
        calibration = Calibration(**fields | {"coefficients": tuple(map(float, fields["coefficients"]))})
        if len(calibration.coefficients) != len(FEATURES):
            raise ValueError(f"expected {len(FEATURES)} coefficients, got {len(calibration.coefficients)}")
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{name}: invalid calibration ({error}); create it again with: pplx-edge bench search relevance DATA"
        ) from error
    return calibration
