"""Convert a checkpoint to an OpenVINO model, and run its layers one by one."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import openvino as ov

from pplx_convert.conversion import Job, Written, split_rows
from pplx_convert.openvino.graph import OpenVinoGraph, Tokens, states_input
from pplx_edge import layout
from pplx_edge.backends.openvino_session import compile_model
from pplx_edge.text.batching import collate
from pplx_edge.types import TokenBatch


def write(job: Job) -> Written:
    """Write the model and return the result. The whole model is in memory while it is saved."""
    job.options.require_only(job.artifact_format)
    projections = job.artifact_format.removeprefix("openvino-")
    graph = OpenVinoGraph(job.checkpoint.divided(), int8=projections == "int8")
    ov.save_model(graph.model(), job.directory / layout.OPENVINO_GRAPH, compress_to_fp16=False)
    for _ in range(job.checkpoint.spec.n_layers):
        job.step()
    batch = collate(job.rows, job.checkpoint.spec.sep_id)
    return Written(
        states=split_rows(_layer_states(graph, batch), job.rows),
        weights={"projections": projections},
        residual=graph.checkpoint.residual,
    )


def _layer_states(graph: OpenVinoGraph, batch: TokenBatch) -> Iterator[np.ndarray]:
    """Yield packed states `[S, D]` after the embedding, after each layer and after the final norm.

    Each is a model of its own, so that only one layer is compiled at a time.
    """
    real = batch.attention_mask.astype(bool)
    tokens = graph.tokens()
    (states,) = _run(graph.finished(graph.embed(tokens), tokens.parameters, "states"), batch, {})
    yield states[real]
    for index in range(graph.spec.n_layers):
        tokens, x = graph.tokens(), states_input(graph.spec)
        (states,) = _run(_section(graph, graph.layer(index, x, tokens), tokens, x), batch, {"states": states})
        yield states[real]
    x = states_input(graph.spec)
    norm = graph.stream_norm(x, graph.checkpoint.read("norm.weight"))
    (states,) = compile_model(graph.finished(norm, [x], "out"))({"states": states}).values()
    yield states[real]


def _section(graph: OpenVinoGraph, value: Any, tokens: Tokens, x: Any) -> ov.Model:
    return graph.finished(value, [*tokens.parameters, x], "out")


def _run(model: ov.Model, batch: TokenBatch, more: dict[str, np.ndarray]) -> list[np.ndarray]:
    feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask} | more
    return list(compile_model(model)(feeds).values())
