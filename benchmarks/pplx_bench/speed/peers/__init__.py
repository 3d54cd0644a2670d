"""What is measured side by side: pplx-edge and its peers, one module each, in one table.

A module has `open_model(source, threads, settings) -> PeerModel` and, when the peer does not run from the checkpoint
itself, `prepare(checkpoint, directory, settings)`, which makes what it opens. No module is imported before it is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from pplx_bench.workdir import fingerprint
from pplx_edge.errors import InputError
from pplx_kit.host import versions

OURS = "native"
GRAPH = "onnx"  # pplx-edge on ONNX Runtime
Encode = Callable[[list[np.ndarray]], np.ndarray]  # rows of ids [T] to mean states, float32 [B, D], in their order


class PeerModel(Protocol):
    """An opened model of a peer."""

    def ways(self, rows: list[np.ndarray]) -> dict[str, Encode]:
        """The ways worth trying for such rows, by name: row by row, in padded batches, all at once. The best counts."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One column of the comparison: its module and settings, what must be installed, and how to install that."""

    name: str
    label: str
    module: str
    needs: tuple[str, ...]
    install: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    made_by: tuple[str, ...] = ()  # modules whose source decides what `prepare` makes; empty: opens the checkpoint
    result_bytes: float = 0.0  # what `prepare` leaves, and what it needs on the way, in bytes per parameter
    scratch_bytes: float = 0.0

    def load(self) -> ModuleType:
        """The module of the peer, imported."""
        return import_module(self.module)

    def missing(self) -> list[str]:
        """Distributions that are not installed."""
        return [name for name in self.needs if not _is_installed(name)]

    def made_of(self, checkpoint_note: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that `prepare` depends on."""
        return {
            "checkpoint": checkpoint_note,
            "settings": dict(self.settings),
            "source": fingerprint(self.module, *self.made_by),
            "versions": versions(*self.needs),
        }


_PIP = "pip install"
_TORCH = f"{_PIP} torch --index-url https://download.pytorch.org/whl/cpu"

PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            name=OURS,
            label="pplx-edge native-int8",
            module="pplx_bench.speed.peers.ours",
            needs=(),
            install=f"{_PIP} pplx-edge",
            settings={"format": "native-int8"},
            made_by=("pplx_convert", "pplx_edge.weights.checkpoint", "pplx_edge.weights.native_file"),
            result_bytes=1.1,
        ),
        Peer(
            name=GRAPH,
            label="pplx-edge onnx-int8",
            module="pplx_bench.speed.peers.ours",
            needs=("onnxruntime",),
            install=f"{_PIP} pplx-edge",
            settings={"format": "onnx-int8"},
            made_by=("pplx_convert", "pplx_edge.weights.checkpoint", "pplx_edge.weights.artifact"),
            result_bytes=1.1,
        ),
        Peer(
            name="torch-fp32",
            label="transformers fp32",
            module="pplx_bench.speed.peers.torch_peer",
            needs=("torch", "transformers"),
            install=f"{_TORCH} && {_PIP} 'transformers>=5.2'",
            settings={"dtype": "float32"},
        ),
        Peer(
            name="torch-bf16",
            label="transformers bf16",
            module="pplx_bench.speed.peers.torch_peer",
            needs=("torch", "transformers"),
            install=f"{_TORCH} && {_PIP} 'transformers>=5.2'",
            settings={"dtype": "bfloat16"},
        ),
        Peer(
            name="recipe",
            label="usual recipe int8",
            module="pplx_bench.speed.peers.recipe",
            needs=("torch", "transformers", "onnx", "onnxruntime"),
            install=f"{_TORCH} && {_PIP} 'transformers>=5.2' onnx",
            made_by=("pplx_bench.speed.peers.stock",),
            result_bytes=1.1,
            scratch_bytes=10.0,
        ),
        Peer(
            name="openvino",
            label="OpenVINO int8",
            module="pplx_bench.speed.peers.openvino_peer",
            needs=("torch", "transformers", "openvino", "nncf"),
            install=f"{_PIP} openvino nncf torch 'transformers>=5.2'",
            settings={"activations": "static"},
            made_by=("pplx_bench.speed.peers.stock",),
            result_bytes=1.1,
        ),
        Peer(
            name="openvino-dynamic",
            label="OpenVINO int8 dyn.",
            module="pplx_bench.speed.peers.openvino_peer",
            needs=("torch", "transformers", "openvino", "nncf"),
            install=f"{_PIP} openvino nncf torch 'transformers>=5.2'",
            settings={"activations": "dynamic"},
            made_by=("pplx_bench.speed.peers.stock",),
            result_bytes=1.1,
        ),
        Peer(
            name="llama.cpp",
            label="llama.cpp Q8_0",
            module="pplx_bench.speed.peers.llama_peer",
            needs=("llama-cpp-python", "gguf"),
            install=f"{_PIP} llama-cpp-python gguf",
            result_bytes=5.1,
        ),
    )
}


def parse_peers(names: str) -> list[Peer]:
    """The peers of a comma-separated list, ours first whenever it is among them."""
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in PEERS:
            raise InputError(f"unknown peer {name!r}: choose from {', '.join(PEERS)}")
    return [peer for name, peer in PEERS.items() if name in wanted]


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
