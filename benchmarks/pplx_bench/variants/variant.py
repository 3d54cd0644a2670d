"""The variants of a model, ours and those of peers, and why this machine cannot run some of them."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pplx_bench.speed.peers import FOUR_BITS, GRAPH, OURS, PEERS
from pplx_cli.availability import backend_states
from pplx_edge.registry import BACKENDS, EXACT_FORMAT, all_formats, require_format
from pplx_edge.spec import ModelSpec

PEER_NAMES = tuple(name for name in PEERS if name not in (OURS, FOUR_BITS, GRAPH))
# Bytes per parameter of the weights in memory, by the end of a format's name; peers hold float32 while they convert.
_BYTES = {"fp32": 4.0, "fp16": 2.0, "f16": 2.0, "bf16": 2.0, "4": 0.8, "q4_0": 0.8}
_INT8_BYTES, _PEER_BYTES, _PROCESS_BYTES = 1.3, 6.0, 0.3e9
_MLX_ON_CPU = "MLX has no GPU on this machine; its CPU build is for tests (name the format with --formats to run it)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A way to run the model: one of our formats, or a peer with the Python interpreter that has its packages."""

    name: str
    is_peer: bool = False
    python: str = sys.executable

    @property
    def backend(self) -> str:
        """The backend of a format, "" for a peer."""
        return "" if self.is_peer else require_format(self.name).name


def find_variants(
    formats: Sequence[str], peers: Mapping[str, str], spec: ModelSpec, max_gb: float | None
) -> tuple[list[Variant], dict[str, str]]:
    """Return the variants that this machine can run, the reference first, and the reasons for all others by name.

    `formats` are those that were asked for, none for all. `peers` maps names to Python interpreters.
    """
    states = backend_states()
    found, left_out = [], {}
    for name in dict.fromkeys([EXACT_FORMAT, *(formats or all_formats())]):
        backend = require_format(name)
        if not states[backend.name].usable:
            left_out[name] = states[backend.name].why
        elif backend is BACKENDS["mlx"] and sys.platform != "darwin" and not formats:
            left_out[name] = _MLX_ON_CPU
        else:
            found.append(Variant(name=name))
    for name, python in peers.items():
        missing = PEERS[name].missing() if python == sys.executable else []
        if missing:
            left_out[name] = f"{', '.join(missing)} not installed: {PEERS[name].install}"
        else:
            found.append(Variant(name=name, is_peer=True, python=python))
    if max_gb is not None:
        for variant in list(found):
            if (need := _gigabytes(variant, spec)) > max_gb:
                found.remove(variant)
                left_out[variant.name] = f"needs about {need:.1f} GB, limit {max_gb:g} GB (--max-gb)"
    return found, left_out


def _gigabytes(variant: Variant, spec: ModelSpec) -> float:
    """Return a rough upper bound for the memory of running a variant."""
    width = next((size for end, size in _BYTES.items() if variant.name.endswith(end)), _INT8_BYTES)
    return (spec.n_parameters * (_PEER_BYTES if variant.is_peer else width) + _PROCESS_BYTES) / 1e9
