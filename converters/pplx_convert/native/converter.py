"""Convert a checkpoint to the weight file of the CPU kernels, tensor by tensor."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pplx_convert.conversion import Job, Written
from pplx_convert.native.evaluation import evaluate
from pplx_edge import layout
from pplx_edge.models.rotary import rotary_tables
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_edge.weights.native_file import (
    COS,
    FINAL_NORM,
    SIN,
    TABLE,
    NativeWeights,
    file_layout,
    padded,
    padded_columns,
    projection,
    scales_of,
)
from pplx_edge.weights.rounding import quantize_projection, quantize_rows
from pplx_edge.weights.safetensors import SafetensorsWriter


def write(job: Job) -> Written:
    """Write the weight file and return the result. The states are computed from the saved file."""
    job.options.require_only(job.artifact_format)
    write_weights(job.checkpoint, job.directory / layout.NATIVE_WEIGHTS, job.step)
    weights = NativeWeights.open(job.directory / layout.NATIVE_WEIGHTS, job.checkpoint.spec)
    return Written(
        states=evaluate(weights, [row.ids for row in job.rows]),
        weights={"projections": job.artifact_format.removeprefix("native-")},
    )


def write_weights(checkpoint: Checkpoint, path: Path, step: Callable[[], None] = lambda: None) -> None:
    """Write the weight file, with one tensor of the checkpoint in memory at a time. Calls `step` after each layer."""
    spec = checkpoint.spec
    with SafetensorsWriter(path, file_layout(spec), {"format": "np"}) as file:
        scales = []
        for block in checkpoint.row_blocks(TABLE):
            codes, block_scales = quantize_rows(block)
            file.append(TABLE, padded_columns(codes))
            scales.append(block_scales)
        file.append(scales_of(TABLE), padded(np.concatenate(scales)))
        for name, table in zip((COS, SIN), rotary_tables(spec.max_tokens, spec), strict=True):
            file.append(name, padded(table))
        for index in range(spec.n_layers):
            for name in spec.layer_shapes():
                full_name = f"layers.{index}.{name}"
                weight = checkpoint.read(full_name)
                if weight.ndim == 1:
                    file.append(full_name, padded(weight))
                    continue
                for stored_name, values in projection(full_name, *quantize_projection(weight)):
                    file.append(stored_name, values)
            step()
        file.append(FINAL_NORM, padded(checkpoint.read(FINAL_NORM)))
