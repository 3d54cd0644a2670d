"""ONNX graphs on the processor: our own artifacts, official graphs, and community copies without pooling."""

from pathlib import Path

import numpy as np
import onnxruntime as ort

from pplx_edge.backends.onnx_options import foreign_session_options, session_options
from pplx_edge.errors import ArtifactError, ModelError, ModelNotFound
from pplx_edge.spec import ModelSpec
from pplx_edge.types import SESSION_DEFAULTS, BatchPolicy, SessionOptions, TokenBatch
from pplx_edge.vectors.pooling import packed_span_means, span_means
from pplx_edge.weights.artifact import ONNX_LAYOUT, Artifact, is_artifact, ready_graphs

PACKED_STATES = "token_states"
ROW_MEANS = "pooler_output"
PADDED_STATES = ("last_hidden_state", "token_embeddings", "hidden_states")
_PROVIDERS = ["CPUExecutionProvider"]


def open_session(directory: Path, options: SessionOptions = SESSION_DEFAULTS) -> "PackedSession | PaddedSession":
    """The model in a directory: an artifact, or a repository with ready ONNX graphs.

    Raises ArtifactError or ModelNotFound when there is none, ModelError when the runtime refuses it, InputError for
    options other than `threads`.
    """
    options.require_only("onnx", "threads")
    spec = ModelSpec.from_directory(directory)
    graph = graph_file(directory)
    options_for = session_options if is_artifact(directory) else foreign_session_options
    try:
        runtime = ort.InferenceSession(str(graph), options_for(options.threads), providers=_PROVIDERS)
    except Exception as error:  # the runtime's exceptions share no base but Exception
        raise ModelError(f"{graph}: ONNX Runtime cannot open it ({_first_line(error)})") from error
    outputs = {output.name for output in runtime.get_outputs()}
    if PACKED_STATES in outputs:
        return PackedSession(runtime, spec)
    return PaddedSession(runtime, spec, _padded_output(outputs, graph))


def graph_file(directory: Path) -> Path:
    """The graph to open in a directory."""
    if is_artifact(directory):
        artifact = Artifact.open(directory)
        if not artifact.format.startswith("onnx-"):
            raise ArtifactError(f"{directory}: holds {artifact.format}, which the onnx backend does not open")
        return artifact.path(ONNX_LAYOUT.graph)
    if graphs := ready_graphs(directory):
        return graphs[0]
    raise ModelNotFound(
        f"{directory}: no ONNX graph here; convert it: pplx-edge convert {directory} --to onnx-int8 --out DIR"
    )


class PackedSession:
    """Our own graphs: rows of any lengths together, padding dropped inside, states returned for real tokens only."""

    backend, device = "onnx", "cpu"
    policy = BatchPolicy(max_tokens=512)

    def __init__(self, runtime: ort.InferenceSession, spec: ModelSpec):
        self.runtime, self.spec = runtime, spec

    def packed_states(self, batch: TokenBatch) -> np.ndarray:
        """States of the real tokens of all rows, one after the other: float32 `[S, D]`."""
        return _run(self.runtime, PACKED_STATES, batch)

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Final hidden states, float32 `[B, T, D]`, zeros at padding."""
        states = np.zeros((*batch.input_ids.shape, self.spec.dim), np.float32)
        states[batch.attention_mask.astype(bool)] = self.packed_states(batch)
        return states

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Mean state of each span, float32 `[N, D]`."""
        starts = np.concatenate([[0], np.cumsum(batch.lengths)])
        return packed_span_means(self.packed_states(batch), starts, batch.spans)


class PaddedSession:
    """Graphs made elsewhere: padded rows in, one state a position out, and sometimes the row means.

    Where such a graph quantises activations with one scale a tensor, a vector depends a little on its batch-mates.
    """

    backend, device = "onnx", "cpu"
    policy = BatchPolicy(max_tokens=1024, max_attention=1 << 20, padded=True)

    def __init__(self, runtime: ort.InferenceSession, spec: ModelSpec, states_output: str | None):
        self.runtime, self.spec, self.states_output = runtime, spec, states_output
        self.gives_row_means = ROW_MEANS in {output.name for output in runtime.get_outputs()}

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Final hidden states, float32 `[B, T, D]`."""
        if self.states_output is None:
            raise ModelError("this graph gives row means only; chunks and token states need one with last_hidden_state")
        return _run(self.runtime, self.states_output, batch)

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Mean state of each span, float32 `[N, D]`; the graph's own row means when nothing else is asked for."""
        if self.gives_row_means and _covers_rows(batch):
            return _run(self.runtime, ROW_MEANS, batch)
        return span_means(self.token_states(batch), batch)


def _run(runtime: ort.InferenceSession, output: str, batch: TokenBatch) -> np.ndarray:
    """One output of a graph, and nothing computed that it does not need."""
    options = ort.RunOptions()
    options.only_execute_path_to_fetches = True
    feeds = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    wanted = {value.name for value in runtime.get_inputs()}
    if unknown := wanted - set(feeds) - {"position_ids"}:
        raise ModelError(f"the graph wants an input {sorted(unknown)[0]!r} that an encoder does not have")
    if "position_ids" in wanted:
        feeds["position_ids"] = np.maximum(batch.attention_mask.cumsum(axis=1) - 1, 0)
    (values,) = runtime.run([output], feeds, options)
    return np.asarray(values, np.float32)


def _covers_rows(batch: TokenBatch) -> bool:
    """Whether the spans are exactly the rows, in order."""
    whole = tuple((row, 0, int(length)) for row, length in enumerate(batch.lengths))
    return tuple((span.row, span.start, span.stop) for span in batch.spans) == whole


def _padded_output(outputs: set[str], graph: Path) -> str | None:
    found = next((name for name in PADDED_STATES if name in outputs), None)
    if found is None and ROW_MEANS not in outputs:
        raise ModelError(
            f"{graph}: none of its outputs ({', '.join(sorted(outputs))}) is token states or a mean of them"
        )
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
