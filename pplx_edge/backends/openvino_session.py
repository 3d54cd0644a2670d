"""Run OpenVINO models on the CPU: our own artifacts, and models that optimum-intel exported."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from pplx_edge import layout
from pplx_edge.errors import ModelError, ModelNotFound
from pplx_edge.registry import OPENVINO
from pplx_edge.spec import ModelSpec
from pplx_edge.types import SESSION_DEFAULTS, BatchPolicy, SessionOptions, TokenBatch
from pplx_edge.vectors.pooling import span_means
from pplx_edge.weights.artifact import Artifact, is_artifact, ready_made_files

STATES = "last_hidden_state"


def open_session(directory: Path, options: SessionOptions = SESSION_DEFAULTS) -> "OpenVinoSession":
    """Open the model in a directory. Raises ModelNotFound if there is none, and ModelError if it cannot be opened."""
    if is_artifact(directory):
        graph = Artifact.open(directory).path(layout.OPENVINO_GRAPH)
    elif graphs := ready_made_files(directory, OPENVINO):
        graph = graphs[0]
    else:
        raise ModelNotFound(f"{directory}: no OpenVINO model here; convert it with pplx-edge convert")
    try:
        compiled = compile_model(graph, options.threads)
    except RuntimeError as error:
        raise ModelError(f"{graph}: OpenVINO cannot open it ({str(error).strip().splitlines()[0]})") from error
    return OpenVinoSession(compiled, ModelSpec.from_directory(directory), graph)


def compile_model(model: Any, threads: int | None = None) -> ov.CompiledModel:
    """Compile a model for the CPU in float32, also where the processor has bfloat16, which costs accuracy."""
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = str(threads)
    return ov.Core().compile_model(model, "CPU", settings)


class OpenVinoSession:
    """A session for models that take padded rows and return one state per position."""

    backend, device = OPENVINO.name, "cpu"
    policy = BatchPolicy(max_tokens=1024, max_attention=1 << 20, padded=True)

    def __init__(self, compiled: ov.CompiledModel, spec: ModelSpec, graph: Path):
        self.compiled, self.spec = compiled, spec
        names = {name for output in compiled.outputs for name in output.names}
        if STATES not in names:
            raise ModelError(f"{graph}: none of its outputs ({', '.join(sorted(names))}) contains token states")
        self._inputs = {name for port in compiled.inputs for name in port.names}

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Return the final hidden states, float32 `[B, T, D]`."""
        feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if "position_ids" in self._inputs:
            feeds["position_ids"] = np.maximum(batch.attention_mask.cumsum(axis=1) - 1, 0)
        request = self.compiled.create_infer_request()  # one per call, because calls may come from several threads
        request.infer(feeds)
        return np.array(request.get_tensor(STATES).data, np.float32)

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Return the mean state of each span, float32 `[N, D]`."""
        return span_means(self.token_states(batch), batch)
