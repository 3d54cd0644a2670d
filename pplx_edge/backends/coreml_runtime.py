"""Run packages with Core ML: compile a package once per machine, load functions on demand, and read the compute plan.

Only this module and `coreml_probe` need a Mac. They are covered by the tests marked `apple`, which do not run on other
machines.
"""

import json
import logging
import platform
import shutil
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from tqdm import tqdm

from pplx_edge import layout
from pplx_edge.backends.coreml_probe import CPU, Choice, choose, compute_unit, load_function
from pplx_edge.errors import InputError, ModelError
from pplx_edge.files import move_into_place, replacing_file
from pplx_edge.system import macos_version
from pplx_edge.weights import hub

LEAST_MACOS = 15  # the first release with fused attention and multifunction packages
_DEVICES = {"MLCPUComputeDevice": "cpu", "MLGPUComputeDevice": "gpu", "MLNeuralEngineComputeDevice": "ane"}
_COMPILING = ".compiling-"
_ABANDONED_SECONDS = 3600.0  # a compilation that has not finished by then was interrupted
_log = logging.getLogger(__name__)


def require_macos() -> None:
    """Raise InputError unless Core ML on this machine can run the packages."""
    release = platform.mac_ver()[0]
    if release and int(release.split(".")[0]) >= LEAST_MACOS:
        return
    here = f"macOS {release}" if release else platform.system()
    raise InputError(f"Core ML runs on macOS {LEAST_MACOS} or later, this is {here}")


def system_build() -> str:
    """Return the release and build of macOS, for example `26.1-25B78`."""
    return "-".join(filter(None, macos_version()))


class CoreMLRuntime:
    """A compiled package on the chosen compute units. Safe to call from several threads; calls run one at a time."""

    def __init__(self, model: Path, fingerprint: str, units: str, least_cosine: float):
        """Compile the package of a converted model unless it is cached.

        `fingerprint` identifies the contents of the model, and `least_cosine` is that of a sound function with the
        reference. Raises ModelError if Core ML cannot compile the package.
        """
        self._model, self._units, self._least_cosine = model, units, least_cosine
        self.compiled = _compiled(model / layout.COREML_PACKAGE, fingerprint)
        self._loaded: dict[int, Any] = {}
        self._lock = Lock()

    def predict(self, length: int, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Run the function of the given length and return its outputs. Raises ModelError if Core ML fails."""
        try:
            with self._lock:
                if length not in self._loaded:
                    chosen = self._chosen(length)
                    self._loaded[length] = load_function(self.compiled, length, chosen.units, chosen.form)
                return self._loaded[length].predict(dict(inputs))
        except ModelError:
            raise
        except Exception as error:  # Core ML raises RuntimeError and other types
            raise ModelError(f"{self.compiled}: Core ML failed at {length} tokens ({error})") from error

    def _chosen(self, length: int) -> Choice:
        """Return the units and the form of attention for a function, tested in child processes before its first use.

        Raises ModelError if it works nowhere, because running it could end this process.
        """
        file = self.compiled.with_name(f"{self.compiled.stem}-{self._units}-{length}.json")
        known = _remembered(file)
        if known is None:
            known = choose(self.compiled, self._model, length, self._units, self._least_cosine)
            _write(file, known.as_dict())
        if not known.units:
            raise ModelError(
                f"{self.compiled}: Core ML works neither on {self._units} nor on the {CPU} at {length} tokens "
                f"({known.why}); use another backend, or delete {file} to try again"
            )
        if known.units != self._units:
            warnings.warn(
                f"Core ML on {self._units} failed at {length} tokens ({known.why}); this function runs on the "
                f"{CPU}. Delete {file} to try again.",
                stacklevel=2,
            )
        return known

    @property
    def device(self) -> str:
        """The devices that Core ML assigns operators to, by share of estimated cost: `coreml (ane 96%, cpu 4%)`.

        Reading the plan can take minutes, because Core ML compiles the default function for it, so the result is cached
        beside the compiled package. A plan that cannot be read is reported as such and never raises.
        """
        file = self.compiled.with_name(f"{self.compiled.stem}-{self._units}-plan.json")
        with self._lock:
            found = _json(file)
            if found is None:
                try:
                    found = self._shares()
                except Exception as error:  # a description is never worth a failure
                    _log.warning("%s: no compute plan (%s)", self.compiled, error)
                    return f"coreml (on {self._units}; no compute plan: {error})"
                _write(file, found)
        placed = ", ".join(f"{device} {share:.0%}" for device, share in sorted(found.items(), key=lambda s: -s[1]))
        return f"coreml ({placed or 'placement unknown'})"

    def _shares(self) -> dict[str, float]:
        """Return the share of the estimated cost by device, over the operators in the compute plan.

        The plan covers only the default function of the package.
        """
        from coremltools.models.compute_plan import MLComputePlan

        plan = MLComputePlan.load_from_path(str(self.compiled), compute_units=compute_unit(self._units))
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
    suffix = f"-macos{system_build()}"
    target = folder / f"{package.stem}-{fingerprint[:16]}{suffix}.mlmodelc"
    _sweep(folder, suffix)
    if target.is_dir():
        return target
    from coremltools.models.utils import compile_model

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            tempfile.TemporaryDirectory(prefix=_COMPILING, dir=folder) as work,
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


def _sweep(folder: Path, suffix: str) -> None:
    """Delete interrupted compilations, and what other versions of macOS compiled and tested."""
    for path in folder.glob(f"{_COMPILING}*"):
        if time.time() - path.lstat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("*-macos*"):
        if path.suffix == ".mlmodelc" and not path.stem.endswith(suffix):
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == ".json" and f"{suffix}-" not in path.name:
            path.unlink(missing_ok=True)


def _remembered(file: Path) -> Choice | None:
    try:
        return Choice(**(_json(file) or {}))
    except TypeError:  # of another version
        return None


def _json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(file: Path, content: Mapping[str, Any]) -> None:
    """Remember a result, if the cache can be written."""
    try:
        with replacing_file(file) as new:
            new.write_text(json.dumps(content), encoding="utf-8")
    except Exception as error:
        _log.warning("%s: not remembered (%s)", file, error)
