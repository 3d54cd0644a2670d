"""Core ML itself: packages compiled once for a machine, functions loaded when a row needs them, and the plan read back.

Only this file needs a Mac. Nothing in it was run on one by the tests that run elsewhere; those marked `apple` do.
"""

import os
import platform
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from tqdm import tqdm

from pplx_edge.backends import coreml_io as io
from pplx_edge.errors import InputError, ModelError
from pplx_edge.weights import hub

LEAST_MACOS = 15  # fused attention and packages of several functions
_UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "cpu+gpu": "CPU_AND_GPU", "cpu+ane": "CPU_AND_NE"}
_DEVICES = {"MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu", "MLNeuralEngineComputeDevice": "ane"}


def require_mac(directory: Path) -> None:
    """Raises InputError unless this machine has a Core ML that can run the packages."""
    release = platform.mac_ver()[0]
    if release and int(release.split(".")[0]) >= LEAST_MACOS:
        return
    here = f"macOS {release}" if release else platform.system()
    raise InputError(
        f"{directory}: Core ML runs on macOS {LEAST_MACOS} or later only, this is {here}; "
        f"pplx-edge info {directory} --evaluate evaluates it here, and an onnx format runs here"
    )


class CoreMLRuntime:
    """A compiled package on chosen compute units. `predict` may be called from several threads, one runs at a time."""

    def __init__(self, package: Path, fingerprint: str, units: str, *, fixed: bool):
        """`fingerprint` names what the package holds; `fixed`: its functions have fixed lengths."""
        from pplx_edge.backends.coreml_tools import ct

        self._tools, self._fixed = ct, fixed
        self._units = ct.ComputeUnit[_UNITS[units]]
        self._compiled = _compiled(package, fingerprint)
        self._loaded: dict[str | None, Any] = {}
        self._lock = Lock()
        self._device = ""

    def predict(self, length: int, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """The outputs of the function of that length. Raises ModelError when Core ML fails."""
        name = io.function_name(length) if self._fixed else None  # a package of one function has no names to choose
        try:
            with self._lock:
                if name not in self._loaded:
                    self._loaded[name] = self._tools.models.CompiledMLModel(
                        str(self._compiled), compute_units=self._units, function_name=name
                    )
                return self._loaded[name].predict(dict(inputs))
        except Exception as error:  # Core ML's failures arrive as RuntimeError and as others
            raise ModelError(f"{self._compiled}: Core ML failed at {length} tokens ({error})") from error

    @property
    def device(self) -> str:
        """Where Core ML places the operators: `coreml (ane 96%, cpu 4%)`, by its estimate of their cost."""
        with self._lock:
            if not self._device:
                shares = sorted(self._shares().items(), key=lambda share: -share[1])
                placed = ", ".join(f"{device} {share:.0%}" for device, share in shares)
                self._device = f"coreml ({placed or 'placement unknown'})"
            return self._device

    def _shares(self) -> dict[str, float]:
        """Share of the estimated cost by device, over the operators that the plan knows of.

        The plan is made for the package's default function; it says nothing of the others.
        """
        from coremltools.models.compute_plan import MLComputePlan

        plan = MLComputePlan.load_from_path(str(self._compiled), compute_units=self._units)
        program = plan.model_structure.program
        shares: dict[str, float] = defaultdict(float)
        for function in program.functions.values() if program else ():
            for operation in function.block.operations:
                usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
                cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
                if usage is not None and cost is not None:
                    kind = type(usage.preferred_compute_device).__name__
                    shares[_DEVICES.get(kind, kind)] += cost.weight
        total = sum(shares.values())
        return {device: share / total for device, share in shares.items()} if total else {}


def _compiled(package: Path, fingerprint: str) -> Path:
    """The package compiled for this system, in the cache; made when it is not there."""
    folder = hub.cache_directory() / "coreml"
    target = folder / f"{package.stem}-{fingerprint[:16]}-macos{platform.mac_ver()[0]}.mlmodelc"
    if target.is_dir():
        return target
    from coremltools.models.utils import compile_model

    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".compiling-", dir=folder))
    try:
        with tqdm(desc="compiling for Core ML, once", total=1, disable=None, leave=False):
            compile_model(str(package), str(partial / target.name))
        os.rename(partial / target.name, target)
    except OSError as error:
        if not target.is_dir():  # else another process was faster, with the same result
            raise ModelError(f"{target}: the compiled model cannot be kept ({error})") from error
    except Exception as error:  # the compiler's failures arrive as RuntimeError and as others
        raise ModelError(f"{package}: Core ML cannot compile it ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target
