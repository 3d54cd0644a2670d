"""Negatives of the pairs of a packed file, and a teacher's scores of them."""

from pathlib import Path

import numpy as np

from pplx_quant.corpus import PackedCorpus
from pplx_quant.errors import ConfigError, DataError


def read_negatives(path: Path | None, packed: PackedCorpus) -> np.ndarray:
    """Return the text ids of negatives, int32 `[N, n]`, -1 for none, from a file of `mine` or those of the pairs.

    Raises ConfigError if the pairs came without, and DataError if the file does not belong to the packed file.
    """
    if path is None:
        if "negatives" not in packed.arrays:
            raise ConfigError("the pairs came without negatives; --negatives is required: the file that mine wrote")
        return packed.arrays["negatives"]
    negatives, n_pairs = _read(path, "negatives", "mine"), len(packed)
    if negatives.ndim != 2 or len(negatives) != n_pairs or negatives.dtype.kind != "i":
        raise DataError(f"{path}: {negatives.dtype} {negatives.shape}, expected integers [{n_pairs}, n]; mine again")
    return negatives


def read_scores(path: Path | None, packed: PackedCorpus, negatives: np.ndarray) -> np.ndarray:
    """Return the scores of the positive and the negatives of each pair, float32 `[N, 1 + n]`, NaN for none.

    Raises ConfigError if there are none, and DataError if they do not belong to the negatives.
    """
    if path is None:
        if "scores" not in packed.arrays:
            raise ConfigError("the pairs came without scores; --scores is required: the file that score wrote")
        scores = packed.arrays["scores"]
    else:
        scores = _read(path, "scores", "score")
    expected = (len(negatives), 1 + negatives.shape[1])
    if scores.shape != expected or scores.dtype.kind != "f":
        raise DataError(f"{path or 'scores'}: {scores.dtype} {scores.shape}, expected floats {list(expected)}")
    return scores.astype(np.float32)


def _read(path: Path, noun: str, command: str) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not an array of {noun} ({error}); create it with the {command} command") from error
