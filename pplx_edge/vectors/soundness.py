"""Probe a graph that another tool made before its vectors are trusted.

A model file can open, run and return vectors of the right shape, and still be wrong: exported with causal attention,
without regard to the attention mask, or with another pooling. Nothing else would show that, so every graph that
pplx-edge did not make itself is run on a few short rows of tokens when it is opened.
"""

import warnings
from statistics import median

import numpy as np

from pplx_edge.errors import ModelError
from pplx_edge.types import Session, Span, TokenBatch
from pplx_edge.vectors.similarity import paired_cosines

_N_PROBES, _N_TOKENS, _N_PADDING = 5, 6, 18
_LARGEST_ID = 10_000  # the rare tokens at the end of a vocabulary are often untrained
_LEAST_MOVE = 1e-4  # float32 rounding moves a state by about 1e-6 of its length
# A graph with one activation scale per tensor gives slightly different vectors next to padding; one that attends to
# padding gives very different ones.
_PADDING_COSINE = 0.9
_POOLING_COSINE = 0.999


def require_sound(session: Session, name: object) -> None:
    """Raise ModelError, naming the graph and the reason, if the graph in a session is not a bidirectional encoder.

    Warns if the graph returns only row means, because causal attention cannot be seen in these.
    """
    rng = np.random.default_rng(0)
    ids = rng.integers(0, min(session.spec.vocab_size, _LARGEST_ID), (_N_PROBES, 3, _N_TOKENS))
    means = session.span_means(_batch(ids[:, 0]))
    if not np.isfinite(means).all():
        raise ModelError(f"{name}: refused, because it gives NaN or infinity; use another file or convert the weights")
    padded = session.span_means(_batch(ids[:, 0], _N_PADDING, session.spec.sep_id))
    if (similar := float(paired_cosines(means, padded).min())) < _PADDING_COSINE:
        raise ModelError(
            f"{name}: refused, because padding changes its vectors (cosine {similar:.2f}, at least {_PADDING_COSINE} "
            "expected): it does not follow the attention mask; use another file or convert the weights"
        )
    try:
        states = session.token_states(_batch(ids[:, 0]))
    except ModelError:
        warnings.warn(
            f"{name}: returns only row means, so it cannot be tested for causal attention; compare it with a "
            "conversion before you rely on it",
            stacklevel=2,
        )
        return
    if (similar := float(paired_cosines(states.mean(axis=1), means).min())) < _POOLING_COSINE:
        raise ModelError(
            f"{name}: refused, because its pooled output is not the mean of its token states (cosine {similar:.2f}); "
            "use another file or convert the weights"
        )
    own, foreign = zip(*(_moves(session, *probe) for probe in ids), strict=True)
    if median(own) <= max(_LEAST_MOVE, *foreign):
        raise ModelError(
            f"{name}: refused, because its attention is causal: changing the last token does not change the state of "
            "the first one, but this model reads in both directions. Exporters ignore that unless they know the "
            "model; convert the weights with pplx-edge convert instead"
        )


def _moves(session: Session, row: np.ndarray, mate: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return how far the first state of a row moves, relative to its length, when a last token changes.

    The first number is for the last token of the row itself, the second for that of the other row in the batch. The
    second is not 0 if activations are quantized with one scale per tensor, and shows how much of the first means
    nothing.
    """
    before, own, foreign = (
        session.token_states(_batch(rows))[0, 0]
        for rows in (
            np.stack([row, mate]),
            np.stack([_with_last(row, other[0]), mate]),
            np.stack([row, _with_last(mate, other[1])]),
        )
    )
    length = max(float(np.linalg.norm(before)), 1e-30)
    return float(np.linalg.norm(own - before)) / length, float(np.linalg.norm(foreign - before)) / length


def _with_last(row: np.ndarray, token: int) -> np.ndarray:
    return np.append(row[:-1], token)


def _batch(ids: np.ndarray, n_padding: int = 0, padding: int = 0) -> TokenBatch:
    """Return rows of equal length as a batch with one span per row, and padding on the right."""
    n_rows, n_tokens = ids.shape
    width = ((0, 0), (0, n_padding))
    return TokenBatch(
        np.pad(ids.astype(np.int64), width, constant_values=padding),
        np.pad(np.ones_like(ids, np.int64), width),
        tuple(Span(row, 0, n_tokens) for row in range(n_rows)),
    )
