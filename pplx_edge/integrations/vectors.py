"""Vectors as the lists of floats that frameworks expect."""

from collections.abc import Sequence

import numpy as np

from pplx_edge.embedder import Embedder


def encode_as_lists(model: Embedder, texts: Sequence[str], *, normalize: bool) -> list[list[float]]:
    """Return the int8 codes of texts as lists of floats, divided by their length with `normalize`."""
    vectors = model.encode(list(texts), show_progress=False).astype(np.float32)
    if normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-9))
    return vectors.tolist()
