"""Open what optimum exported. The command `optimum-cli export pplx-edge` is in `optimum_command`."""

from pathlib import Path
from typing import Any

from pplx_edge import Embedder, load
from pplx_edge.errors import ModelNotFound
from pplx_edge.weights.artifact import is_artifact, ready_made
from pplx_edge.weights.checkpoint import has_weights


def open(directory: str | Path, **options: Any) -> Embedder:
    """Open a directory that optimum exported to ONNX or OpenVINO and return it as an `Embedder`.

    The graph is probed first. `optimum-cli export onnx` writes causal graphs of bidirectional checkpoints, which are
    refused with ModelError. `options` are those of `pplx_edge.load`. Raises ModelNotFound if the directory contains no
    exported graph.
    """
    directory = Path(directory)
    if is_artifact(directory) or has_weights(directory) or ready_made(directory) is None:
        raise ModelNotFound(f"{directory}: contains no graph exported by optimum; open it with pplx_edge.load")
    return load(directory, offline=True, **options)
