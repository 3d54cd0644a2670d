"""Which backends this machine and this installation can use, and why not the others."""

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from pplx_edge import backends
from pplx_edge.errors import EdgeError, InputError
from pplx_kit import host
from pplx_kit.terminal import human_bytes, printable

# What each backend stands on, as it is called where packages are installed.
DISTRIBUTIONS = {"onnx": ("onnxruntime", "onnx"), "mlx": ("mlx",), "coreml": ("coremltools",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendState:
    """Whether a backend can be used; `why` says why not, or what is to know of it. Versions by distribution."""

    usable: bool
    why: str
    versions: dict[str, str]


def backend_states() -> dict[str, BackendState]:
    """Every backend of this release by name."""
    return {name: _state(name) for name in backends.SESSIONS}


def _state(backend: str) -> BackendState:
    versions = host.versions(*DISTRIBUTIONS.get(backend, ()))
    try:
        _REQUIREMENTS.get(backend, _nothing)()
        backends.require_installed(backend)
        import_module(backends.SESSIONS[backend])
        return BackendState(usable=True, why=_NOTES.get(backend, _nothing)(), versions=versions)
    except EdgeError as error:
        return BackendState(usable=False, why=str(error), versions=versions)
    except (ImportError, OSError) as error:  # installed, but not whole, or not for this machine
        why = f"installed, but it cannot be loaded ({printable(str(error))}); install it again"
        return BackendState(usable=False, why=why, versions=versions)


def _nothing() -> str:
    return ""


def _require_core_ml() -> str:
    """Raises InputError where the system has no Core ML that runs our packages."""
    from pplx_edge.backends.coreml_runtime import LEAST_MACOS

    release = platform.mac_ver()[0]
    if not release or int(release.split(".")[0]) < LEAST_MACOS:
        here = f"macOS {release}" if release else platform.system()
        raise InputError(f"Core ML runs on macOS {LEAST_MACOS} or later, this is {here}")
    return ""


def _onnx_note() -> str:
    """Return how int8 products are computed. Raises EdgeError where they are wrong."""
    from pplx_edge.backends.onnx_options import needs_wide_int8, require_exact_products

    require_exact_products()
    if needs_wide_int8():
        return (
            "int8 products are exact with the fast kernels for models converted by pplx-edge; int8 graphs made "
            "elsewhere run on slower kernels, because this processor has no VNNI"
        )
    return "int8 products are exact with the fast kernels"


def _mlx_note() -> str:
    from pplx_edge.backends.mlx_device import describe_device

    device = describe_device()
    if not device.metal:
        where = "on a Mac it needs Apple Silicon" if sys.platform == "darwin" else "that takes a Mac"
        return f"no Metal here ({where}): it computes on the processor, slowly, which is good for checks only"
    advised = f", {human_bytes(device.recommended_bytes)} advised by Metal" if device.recommended_bytes else ""
    return f"Metal on {device.name}; arrays may take {human_bytes(device.memory_limit_bytes)}{advised}"


# What must hold before packages are looked for: raises an EdgeError that says what does not.
_REQUIREMENTS: dict[str, Callable[[], str]] = {"coreml": _require_core_ml}
# What is to know of a backend that can be loaded; raises an EdgeError where it is unusable all the same.
_NOTES: dict[str, Callable[[], str]] = {"onnx": _onnx_note, "mlx": _mlx_note}
