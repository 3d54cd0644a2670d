"""Core ML artifacts where there is no Core ML: the programs in their files, evaluated in NumPy."""

from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np

from pplx_convert.coreml import converter as coreml_convert
from pplx_edge.backends.coreml_runtime import require_macos
from pplx_edge.backends.coreml_session import open_artifact, row_lengths
from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.types import BatchPolicy, TokenBatch, TokenRow
from pplx_edge.vectors.pooling import packed_span_means


def needs_evaluation() -> bool:
    """Return whether this machine cannot run Core ML packages."""
    try:
        require_macos()
    except InputError:
        return True
    return False


class ProgramSession:
    """A session that evaluates a Core ML artifact in NumPy, rounding to float16 wherever its program declares it."""

    backend, device = "coreml", "evaluated in NumPy"
    policy = BatchPolicy(max_tokens=8192)  # rows go side by side, so that each weight is decoded once

    def __init__(self, directory: Path):
        spec = ModelSpec.from_directory(directory)
        longest = row_lengths(open_artifact(directory)).limit
        self.spec = replace(spec, max_tokens=min(spec.max_tokens, longest))
        self._directory = directory

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Final hidden states, float32 `[B, T, D]`, zeros at padding."""
        states = np.zeros((*batch.input_ids.shape, self.spec.dim), np.float32)
        states[batch.attention_mask.astype(bool)] = np.concatenate(self._states(batch))
        return states

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Mean state of each span, float32 `[N, D]`; an empty span gives zeros."""
        starts = np.concatenate([[0], np.cumsum(batch.lengths)])
        return packed_span_means(np.concatenate(self._states(batch)), starts, batch.spans)

    def _states(self, batch: TokenBatch) -> list[np.ndarray]:
        """States `[T, D]` of each row after the final norm."""
        real = batch.attention_mask.astype(bool)
        rows = [TokenRow(ids[mask], ()) for ids, mask in zip(batch.input_ids, real, strict=True)]
        last = deque(coreml_convert.evaluate(self._directory, rows, half=True), maxlen=1).pop()
        return [np.asarray(states, np.float32) for states in last]
