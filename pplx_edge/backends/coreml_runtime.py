"""Run packages with Core ML: compile a package once per machine, load functions on demand, and read the compute plan.

Only this module needs a Mac. It is covered by the tests marked `apple`, which do not run on other machines.
"""

import platform
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
from pplx_edge.files import move_into_place
from pplx_edge.weights import hub

LEAST_MACOS = 15  # the first release with fused attention and multifunction packages
_UNITS = {"all": "ALL", "cpu": "CPU_ONLY", "cpu+gpu": "CPU_AND_GPU", "cpu+ane": "CPU_AND_NE"}
_DEVICES = {"MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu", "MLNeuralEngineComputeDevice": "ane"}


def require_macos() -> None:
    """Raise InputError unless Core ML on this machine can run the packages."""
    release = platform.mac_ver()[0]
    if release and int(release.split(".")[0]) >= LEAST_MACOS:
        return
    here = f"macOS {release}" if release else platform.system()
    raise InputError(f"Core ML runs on macOS {LEAST_MACOS} or later, this is {here}")


class CoreMLRuntime:
    """A compiled package on the chosen compute units. Safe to call from several threads; calls run one at a time."""

    def __init__(self, package: Path, fingerprint: str, units: str, *, fixed: bool):
        """Compile the package unless it is cached.

        `fingerprint` identifies the contents of the package. `fixed` means that its functions have fixed lengths.
        Raises ModelError if Core ML cannot compile it.
        """
        from pplx_edge.backends.coreml_tools import ct

        self._tools, self._fixed = ct, fixed
        self._units = ct.ComputeUnit[_UNITS[units]]
        self._compiled = _compiled(package, fingerprint)
        self._loaded: dict[str | None, Any] = {}
        self._lock = Lock()
        self._device = ""

    def predict(self, length: int, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Run the function of the given length and return its outputs. Raises ModelError if Core ML fails."""
        name = io.function_name(length) if self._fixed else None  # a package with one function takes no name
        try:
            with self._lock:
                if name not in self._loaded:
                    self._loaded[name] = self._tools.models.CompiledMLModel(
                        str(self._compiled), compute_units=self._units, function_name=name
                    )
                return self._loaded[name].predict(dict(inputs))
        except Exception as error:  # Core ML raises RuntimeError and other types
            raise ModelError(f"{self._compiled}: Core ML failed at {length} tokens ({error})") from error

    @property
    def device(self) -> str:
        """The devices that Core ML assigns operators to, by share of estimated cost: `coreml (ane 96%, cpu 4%)`."""
        with self._lock:
            if not self._device:
                shares = sorted(self._shares().items(), key=lambda share: -share[1])
                placed = ", ".join(f"{device} {share:.0%}" for device, share in shares)
                self._device = f"coreml ({placed or 'placement unknown'})"
            return self._device

    def _shares(self) -> dict[str, float]:
        """Return the share of the estimated cost by device, over the operators in the compute plan.

        The plan covers only the default function of the package.
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
    """Return the compiled package for this system, compiling it into the cache first if necessary."""
    folder = hub.cache_directory() / "coreml"
    target = folder / f"{package.stem}-{fingerprint[:16]}-macos{platform.mac_ver()[0]}.mlmodelc"
    if target.is_dir():
        return target
    from coremltools.models.utils import compile_model

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".compiling-", dir=folder) as work,
            tqdm(desc="compiling for Core ML, once", total=1, disable=None, leave=False),
        ):
            compiled = Path(work, target.name)
            compile_model(str(package), str(compiled))
            move_into_place(compiled, target)
    except (OSError, InputError) as error:
        if not target.is_dir():  # otherwise another process finished the same compilation first
            raise ModelError(f"{target}: the compiled model cannot be stored ({error})") from error
    except Exception as error:  # the compiler raises RuntimeError and other types
        raise ModelError(f"{package}: Core ML cannot compile it ({error})") from error
    return target
