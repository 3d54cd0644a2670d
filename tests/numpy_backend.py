"""A backend that only tests register: it copies the weights and runs the NumPy reference."""

import shutil
from pathlib import Path

import numpy as np

from pplx_convert.conversion import Job, Written
from pplx_edge.models.qwen3_numpy import encode_rows, layer_states
from pplx_edge.registry import Backend, ParityLimits
from pplx_edge.types import SESSION_DEFAULTS, BatchPolicy, SessionOptions, TokenBatch
from pplx_edge.vectors.pooling import span_means
from pplx_edge.weights.checkpoint import Checkpoint

NUMPY = Backend(
    name="numpy",
    session="numpy_backend:open_session",
    writer="numpy_backend:write",
    distributions=("numpy",),
    formats={"numpy-fp32": ParityLimits(min_cosine=1, mean_cosine=1, largest_step=0)},
    revision=7,
    options=("threads",),
)


class NumpySession:
    backend, device, policy = "numpy", "cpu", BatchPolicy()

    def __init__(self, directory: Path):
        self.checkpoint = Checkpoint.open(directory)
        self.spec = self.checkpoint.spec

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Return the final hidden states, float32 `[B, T, D]`, zeros at padding."""
        real = batch.attention_mask.astype(bool)
        states = np.zeros((*real.shape, self.spec.dim), np.float32)
        rows = [ids[mask] for ids, mask in zip(batch.input_ids, real, strict=True)]
        states[real] = np.concatenate(encode_rows(self.checkpoint, rows))
        return states

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Return the mean state of each span, float32 `[N, D]`."""
        return span_means(self.token_states(batch), batch)


def open_session(directory: Path, options: SessionOptions = SESSION_DEFAULTS) -> NumpySession:
    """Open an artifact and return the session."""
    return NumpySession(directory)


def write(job: Job) -> Written:
    """Copy the weight files and return the states of the reference."""
    for path in job.checkpoint.files:
        shutil.copyfile(path, job.directory / path.name)
    for _ in range(job.checkpoint.spec.n_layers):
        job.step()
    return Written(states=layer_states(job.checkpoint, [row.ids for row in job.rows]))
