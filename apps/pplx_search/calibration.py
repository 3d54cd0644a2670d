"""Fit the calibration that decides whether a query is answered, and measure its error. Needs scikit-learn.

The evidence of each query is labeled with whether its answer is in the index. `pplx-edge bench search relevance`
collects such evidence from retrieval tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ANSWERABLE, MISSING, FOREIGN = KINDS = ("answerable", "missing", "foreign")
ERRORS = ("declined", "missing_answered", "foreign_answered", "auc", "brier")
MAX_DECLINED = 0.05  # share of answerable queries that may be declined


@dataclass(frozen=True, slots=True)
class LabeledQuery:
    """The FEATURES of a query's evidence in an index, whether it has an exact match, and the kind of query.

    A query is `answerable` if its answer is in the index, `missing` if only its subject is, and `foreign` otherwise.
    """

    index: str
    task: str
    kind: str
    features: tuple[float, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class Fit:
    """A logistic regression of FEATURES, and the lowest probability that counts as answered."""

    coefficients: tuple[float, ...]
    intercept: float
    least_chance: float = 0.0

    def chances(self, queries: Sequence[LabeledQuery]) -> np.ndarray:
        """Return the probability that each query is answered."""
        logits = np.array([each.features for each in queries]) @ np.array(self.coefficients) + self.intercept
        return 1 / (1 + np.exp(-logits))


def fit(queries: Sequence[LabeledQuery]) -> Fit:
    """Return the regression for labeled queries, with a threshold that declines MAX_DECLINED of the answerable ones."""
    from sklearn.linear_model import LogisticRegression

    rows = np.array([each.features for each in queries])
    answerable = np.array([each.kind == ANSWERABLE for each in queries])
    weights, spread = weights_of(queries), rows.std(axis=0)
    model = LogisticRegression(max_iter=10_000).fit(rows / spread, answerable, sample_weight=weights * len(queries))
    found = Fit(tuple((model.coef_[0] / spread).tolist()), float(model.intercept_[0]))
    counted = answerable & ~np.array([each.exact for each in queries])  # an exact match is never declined
    chances = found.chances(queries)[counted]
    order = np.argsort(chances)
    below = np.cumsum(weights[counted][order]) / weights[answerable].sum()
    least = chances[order][min(np.searchsorted(below, MAX_DECLINED), len(order) - 1)]
    return Fit(found.coefficients, found.intercept, float(least))


def weights_of(queries: Sequence[LabeledQuery]) -> np.ndarray:
    """Return weights that count all tasks the same: half for answerable queries, a quarter for each other kind."""
    counts: dict[tuple[str, str], int] = {}
    for each in queries:
        counts[each.task, each.kind] = counts.get((each.task, each.kind), 0) + 1
    n_tasks = len({task for task, _ in counts})
    share = {ANSWERABLE: 0.5, MISSING: 0.25, FOREIGN: 0.25}
    return np.array([share[each.kind] / counts[each.task, each.kind] / n_tasks for each in queries])


def errors_of(queries: Sequence[LabeledQuery], found: Fit) -> dict[str, Any]:
    """Return ERRORS: the shares of answerable queries declined and of others answered, AUC and Brier score; and counts.

    A share is None without queries of that kind.
    """
    from sklearn.metrics import roc_auc_score

    chances, weights = found.chances(queries), weights_of(queries)
    kinds = np.array([each.kind for each in queries])
    answered = (chances >= found.least_chance) | np.array([each.exact for each in queries])
    shares = {kind: float(answered[kinds == kind].mean()) if (kinds == kind).any() else None for kind in KINDS}
    declined = shares[ANSWERABLE]
    return {
        "n": {kind: int((kinds == kind).sum()) for kind in KINDS},
        "declined": None if declined is None else 1 - declined,
        "missing_answered": shares[MISSING],
        "foreign_answered": shares[FOREIGN],
        "auc": float(roc_auc_score(kinds == ANSWERABLE, chances, sample_weight=weights)),
        "brier": float(np.average((chances - (kinds == ANSWERABLE)) ** 2, weights=weights)),
    }
