"""Open what optimum exported, and add `optimum-cli export pplx-edge` to an editable install.

optimum looks for commands in files next to its own, where a wheel of pplx-edge has one. An editable install has none
there: `python -m pplx_edge.integrations.optimum` writes it.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pplx_edge import Embedder, load
from pplx_edge.errors import MissingExtra, ModelNotFound
from pplx_edge.weights.artifact import is_artifact, ready_made
from pplx_edge.weights.checkpoint import has_weights

_COMMAND = 'from pplx_edge.integrations.optimum_command import REGISTER_COMMANDS\n\n__all__ = ["REGISTER_COMMANDS"]\n'


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


def install_command() -> Path:
    """Write the file with which `optimum-cli` finds `export pplx-edge`, and return its path.

    Raises MissingExtra if optimum is not installed.
    """
    try:
        base = find_spec("optimum.commands.base")
    except ModuleNotFoundError:
        base = None
    if base is None or not base.origin:
        raise MissingExtra("optimum-cli", "optimum")
    folder = Path(base.origin).parent / "register"
    folder.mkdir(exist_ok=True)
    path = folder / "register_pplx_edge.py"
    path.write_text(_COMMAND, encoding="utf-8")
    return path


if __name__ == "__main__":
    print(install_command())
