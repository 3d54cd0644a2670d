"""Run ONNX graphs on the CPU: our own artifacts, official graphs, and community graphs without pooling."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from pplx_edge import layout
from pplx_edge.backends.onnx_options import foreign_session_options, session_options
from pplx_edge.errors import ModelError, ModelNotFound
from pplx_edge.registry import ONNX
from pplx_edge.spec import ModelSpec
from pplx_edge.types import SESSION_DEFAULTS, BatchPolicy, SessionOptions, TokenBatch
from pplx_edge.vectors.pooling import packed_span_means, span_means
from pplx_edge.weights.artifact import Artifact, is_artifact, ready_made_files

PACKED_STATES = "token_states"
ROW_MEANS = "pooler_output"
PADDED_STATES = ("last_hidden_state", "token_embeddings", "hidden_states")
_PROVIDERS = ["CPUExecutionProvider"]


def open_session(directory: Path, options: SessionOptions = SESSION_DEFAULTS) -> "PackedSession | PaddedSession":
    """Open the model in a directory: an artifact, or a repository with ready-made ONNX graphs.

    Raises ArtifactError or ModelNotFound if there is none, and ModelError if ONNX Runtime cannot open it.
    """
    spec = ModelSpec.from_directory(directory)
    graph = graph_file(directory)
    options_for = session_options if is_artifact(directory) else foreign_session_options
    try:
        runtime = ort.InferenceSession(str(graph), options_for(options.threads), providers=_PROVIDERS)
    except Exception as error:  # the runtime's exceptions have no common base class except Exception
        raise ModelError(f"{graph}: ONNX Runtime cannot open it ({_first_line(error)})") from error
    outputs = {output.name for output in runtime.get_outputs()}
    if PACKED_STATES in outputs:
        return PackedSession(runtime, spec)
    return PaddedSession(runtime, spec, _padded_output(outputs, graph))


def graph_file(directory: Path) -> Path:
    """Return the graph to open in a directory. Raises ArtifactError or ModelNotFound if there is none."""
    if is_artifact(directory):
        return Artifact.open(directory).path(layout.ONNX_GRAPH)
    if graphs := ready_made_files(directory, ONNX):
        return graphs[0]
    raise ModelNotFound(
        f"{directory}: no ONNX graph here; convert it: pplx-edge convert {directory} --to onnx-int8 --out DIR"
    )


class PackedSession:
    """A session for our own graphs, which drop padding internally and return the states of real tokens only."""

    backend, device = "onnx", "cpu"
    policy = BatchPolicy(max_tokens=512)

    def __init__(self, runtime: ort.InferenceSession, spec: ModelSpec):
        self.runtime, self.spec = runtime, spec

    def packed_states(self, batch: TokenBatch) -> np.ndarray:
        """Return the states of the real tokens of all rows, concatenated: float32 `[S, D]`."""
        return _run(self.runtime, PACKED_STATES, batch)

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Return the final hidden states, float32 `[B, T, D]`, zeros at padding."""
        states = np.zeros((*batch.input_ids.shape, self.spec.dim), np.float32)
        states[batch.attention_mask.astype(bool)] = self.packed_states(batch)
        return states

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Return the mean state of each span, float32 `[N, D]`; an empty span gives zeros."""
        starts = np.concatenate([[0], np.cumsum(batch.lengths)])
        return packed_span_means(self.packed_states(batch), starts, batch.spans)


class PaddedSession:
    """A session for graphs from elsewhere, which take padded rows and return one state per position or row means.

    If such a graph quantizes activations with one scale per tensor, a vector depends slightly on the other rows of its
    batch.
    """

    backend, device = "onnx", "cpu"
    policy = BatchPolicy(max_tokens=1024, max_attention=1 << 20, padded=True)

    def __init__(self, runtime: ort.InferenceSession, spec: ModelSpec, states_output: str | None):
        self.runtime, self.spec, self.states_output = runtime, spec, states_output
        self.gives_row_means = ROW_MEANS in {output.name for output in runtime.get_outputs()}

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Return the final hidden states, float32 `[B, T, D]`. Raises ModelError if the graph has only row means."""
        if self.states_output is None:
            raise ModelError(
                "this graph returns only row means; chunks and token states need a graph with last_hidden_state"
            )
        return _run(self.runtime, self.states_output, batch)

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Return the mean state of each span, float32 `[N, D]`; the graph's own row means if the spans are the rows."""
        if self.gives_row_means and _covers_rows(batch):
            return _run(self.runtime, ROW_MEANS, batch)
        return span_means(self.token_states(batch), batch)


def _run(runtime: ort.InferenceSession, output: str, batch: TokenBatch) -> np.ndarray:
    """Run only the part of a graph that one output needs, and return that output as float32."""
    options = ort.RunOptions()
    options.only_execute_path_to_fetches = True
    feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    wanted = {value.name for value in runtime.get_inputs()}
    if unknown := wanted - set(feeds) - {"position_ids"}:
        raise ModelError(f"the graph requires input {sorted(unknown)[0]!r}, which an encoder does not have")
    if "position_ids" in wanted:
        feeds["position_ids"] = np.maximum(batch.attention_mask.cumsum(axis=1) - 1, 0)
    (values,) = runtime.run([output], feeds, options)
    return np.asarray(values, np.float32)


def _covers_rows(batch: TokenBatch) -> bool:
    """Return whether the spans are exactly the rows, in order."""
    whole = tuple((row, 0, int(length)) for row, length in enumerate(batch.lengths))
    return tuple((span.row, span.start, span.stop) for span in batch.spans) == whole


def _padded_output(outputs: set[str], graph: Path) -> str | None:
    found = next((name for name in PADDED_STATES if name in outputs), None)
    if found is None and ROW_MEANS not in outputs:
        raise ModelError(
            f"{graph}: none of its outputs ({', '.join(sorted(outputs))}) contains token states or their means"
        )
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
