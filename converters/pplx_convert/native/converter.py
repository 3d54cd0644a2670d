"""Convert a checkpoint to the model file of the CPU kernels, tensor by tensor."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pplx_convert.conversion import Job, Written, split_rows
from pplx_convert.native.evaluation import evaluate
from pplx_edge import layout
from pplx_edge.backends.native_library import load_library
from pplx_edge.backends.native_session import NativeSession
from pplx_edge.errors import ModelError
from pplx_edge.models.rotary import rotary_tables
from pplx_edge.text.batching import collate
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_edge.weights.native_file import FORMAT_BITS, write_model
from pplx_edge.weights.rounding import quantize_projection, quantize_rows, scaled_projection


def write(job: Job) -> Written:
    """Write the model file and return the result.

    The states are computed by the CPU kernels, or in NumPy if this installation has none.
    """
    job.options.require_only(job.artifact_format)
    path, spec = job.directory / layout.NATIVE_MODEL, job.checkpoint.spec
    bits = FORMAT_BITS[job.artifact_format]
    write_file(job.checkpoint, path, job.step, bits)
    try:
        session = NativeSession(load_library(), spec, path)
        states, computed_by = split_rows(session.layer_states(collate(job.rows, spec.sep_id)), job.rows), "kernels"
    except ModelError:
        states, computed_by = evaluate(path, spec, [row.ids for row in job.rows], bits), "NumPy"
    return Written(
        states=states,
        weights={"projections": job.artifact_format.removeprefix("native-"), "computed_by": computed_by},
    )


def write_file(checkpoint: Checkpoint, path: Path, step: Callable[[], None] = lambda: None, bits: int = 8) -> None:
    """Write the model file of a checkpoint. Calls `step` after each layer."""
    with path.open("wb") as file:
        write_model(file, checkpoint.spec, QuantizedCheckpoint(checkpoint, bits), step, bits)


class QuantizedCheckpoint:
    """The weights of a checkpoint, rounded to int8 when they are read, or scaled for 4 bits."""

    def __init__(self, checkpoint: Checkpoint, bits: int):
        self.checkpoint = checkpoint
        self.round = quantize_projection if bits == 8 else scaled_projection

    def table_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield blocks of rows of the embedding table, int8 `[R, D]`, with their float32 scales `[R]`."""
        return map(quantize_rows, self.checkpoint.row_blocks("embed_tokens.weight"))

    def vector(self, name: str) -> np.ndarray:
        """Return the weight of a norm, float32."""
        return self.checkpoint.read(name)

    def projection(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of a projection, int8 or not yet rounded `[N, K]`, and its scales, float32 `[N]`."""
        return self.round(self.checkpoint.read(name))

    def rotary(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rotary cosines and sines, float32 `[max_tokens, head_dim / 2]` each."""
        return rotary_tables(self.checkpoint.spec.max_tokens, self.checkpoint.spec)
