"""The table of what is measured side by side: pplx-edge and its peers, one module each.

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
FOUR_BITS = "native-int4"
GRAPH = "onnx"  # pplx-edge on ONNX Runtime
Encode = Callable[[list[np.ndarray]], np.ndarray]  # rows of ids [T] to mean states, float32 [B, D], in their order


class PeerModel(Protocol):
    """An opened model of a peer."""

    def ways(self, rows: list[np.ndarray]) -> dict[str, Encode]:
        """The ways worth trying for such rows, by name: row by row, in padded batches, all at once. The best counts."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One column of the comparison: its module and settings, and the distributions that it needs."""

    name: str
    label: str
    module: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    made_by: tuple[str, ...] = ()  # modules whose source decides what `prepare` makes; empty: opens the checkpoint
    result_bytes: float = 0.0  # what `prepare` leaves, and what it needs on the way, in bytes per parameter
    scratch_bytes: float = 0.0

    @property
    def install(self) -> str:
        """The command that installs what the peer needs."""
        names = [f"'{name}>=5.2'" if name == "transformers" else name for name in self.needs]
        return f"pip install {' '.join(names)}"

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


def _peer(name: str, label: str, module: str, needs: str, **more: Any) -> Peer:
    return Peer(name=name, label=label, module=f"{__name__}.{module}", needs=tuple(needs.split()), **more)


_EXPORTED = {"made_by": (f"{__name__}.stock",), "result_bytes": 1.1}
_TORCH, _OPENVINO = "torch transformers", "torch transformers openvino nncf"
_SENTENCE = f"{_TORCH} sentence-transformers"

PEERS = {
    peer.name: peer
    for peer in (
        _peer(
            OURS,
            "pplx-edge native-int8",
            "ours",
            "",
            settings={"format": "native-int8"},
            made_by=("pplx_convert", "pplx_edge.weights.checkpoint", "pplx_edge.weights.native_file"),
            result_bytes=1.1,
        ),
        _peer(
            FOUR_BITS,
            "pplx-edge native-int4",
            "ours",
            "",
            settings={"format": "native-int4"},
            made_by=("pplx_convert", "pplx_edge.weights.checkpoint", "pplx_edge.weights.native_file"),
            result_bytes=0.7,
        ),
        _peer(
            GRAPH,
            "pplx-edge onnx-int8",
            "ours",
            "onnxruntime",
            settings={"format": "onnx-int8"},
            made_by=("pplx_convert", "pplx_edge.weights.checkpoint", "pplx_edge.weights.artifact"),
            result_bytes=1.1,
        ),
        _peer("torch-fp32", "transformers fp32", "torch_peer", _TORCH, settings={"dtype": "float32"}),
        _peer("torch-bf16", "transformers bf16", "torch_peer", _TORCH, settings={"dtype": "bfloat16"}),
        _peer("st-fp32", "sentence-tr. fp32", "sentence_peer", _SENTENCE, settings={"dtype": "float32"}),
        _peer("st-bf16", "sentence-tr. bf16", "sentence_peer", _SENTENCE, settings={"dtype": "bfloat16"}),
        _peer("recipe", "usual recipe int8", "recipe", f"{_TORCH} onnx onnxruntime", scratch_bytes=10.0, **_EXPORTED),
        _peer("openvino", "OpenVINO int8", "openvino_peer", _OPENVINO, settings={"activations": "static"}, **_EXPORTED),
        _peer(
            "openvino-dynamic",
            "OpenVINO int8 dyn.",
            "openvino_peer",
            _OPENVINO,
            settings={"activations": "dynamic"},
            **_EXPORTED,
        ),
        _peer("llama.cpp", "llama.cpp Q8_0", "llama_peer", "llama-cpp-python gguf", result_bytes=5.1),
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
