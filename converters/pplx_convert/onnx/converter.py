"""Convert a checkpoint to an ONNX graph and its data file, and run the sections of the graph one by one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from pplx_convert.conversion import Job, Written, split_rows
from pplx_convert.onnx import graph as onnx_graph
from pplx_convert.onnx.builder import GraphBuilder, WeightFile
from pplx_convert.onnx.weights import WEIGHT_FORMATS, WeightFormat
from pplx_edge import layout
from pplx_edge.backends.onnx_options import session_options
from pplx_edge.spec import ModelSpec
from pplx_edge.text.batching import collate
from pplx_edge.types import TokenBatch
from pplx_edge.weights.checkpoint import Checkpoint


def write(job: Job) -> Written:
    """Write the graph and its data file, and return the result."""
    job.options.require_only(job.artifact_format)
    weight_format = WEIGHT_FORMATS[job.artifact_format]
    stored, spec = write_graph(job.checkpoint, weight_format, job.directory, job.step), job.checkpoint.spec
    batch = collate(job.rows, spec.sep_id)
    return Written(
        states=split_rows(section_states(spec, weight_format, stored, job.directory, batch), job.rows),
        weights={"projections": job.artifact_format.removeprefix("onnx-")},
    )


def write_graph(
    checkpoint: Checkpoint, weight_format: WeightFormat, directory: Path, step: Callable[[], None] = lambda: None
) -> GraphBuilder:
    """Write the graph and its data file, and return a builder that refers to the stored weights."""
    builder = GraphBuilder()
    file = WeightFile(directory / layout.ONNX_WEIGHTS)
    try:
        onnx_graph.store_weights(checkpoint, weight_format, builder, file, step)
    finally:
        file.close()
    stored = builder.with_weights(("",))
    onnx.save_model(onnx_graph.whole_model(checkpoint.spec, weight_format, builder), str(directory / layout.ONNX_GRAPH))
    return stored


def section_states(
    spec: ModelSpec, weight_format: WeightFormat, stored: GraphBuilder, directory: Path, batch: TokenBatch
) -> Iterator[np.ndarray]:
    """Yield packed states `[S, D]` after the embedding, after each layer and after the final norm.

    Only one section of the graph is loaded at a time.
    """
    tokens = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    (residual,) = _run(onnx_graph.embedding_section(spec, weight_format, stored), directory, tokens)
    yield residual
    state = {"residual_in": residual}
    for index in range(spec.n_layers):
        feeds = {"attention_mask": batch.attention_mask} | state
        residual, pending = _run(onnx_graph.layer_section(spec, weight_format, stored, index), directory, feeds)
        yield residual + pending
        state = {"residual_in": residual, "pending_in": pending}
    (states,) = _run(onnx_graph.final_section(spec, weight_format, stored), directory, state)
    yield states


def _run(model: onnx.ModelProto, directory: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = session_options()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(directory))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)  # type: ignore[return-value]
