"""A Mac whose Core ML fails, played by NumPy: `simulated_mac.py FAULT SOURCE CACHE PROGRAM ARGUMENTS`.

PROGRAM is `self-test`, `report` or `probe`, a process that the product would start. Core ML is replaced by the
reference model of the checkpoint in SOURCE, and misbehaves as FAULT says.
"""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from pplx_cli import self_test
from pplx_cli.report import steps
from pplx_edge import backends
from pplx_edge.backends import coreml_io as io
from pplx_edge.backends import coreml_probe, coreml_runtime
from pplx_edge.models.qwen3_numpy import block, rms_norm
from pplx_edge.weights import hub
from pplx_edge.weights.checkpoint import Checkpoint

FAULTS = {
    "keeps": "keeps the inputs of a prediction until the next one, and crashes if it holds the last reference then",
    "keeps new arrays": "the same, with a session that passes new arrays each time",
    "aborts": "ends the process on units other than the CPU",
    "aborts everywhere": "ends the process on all units",
    "hangs": "never returns on units other than the CPU",
    "nan": "returns NaN on units other than the CPU",
    "wrong": "returns other vectors on units other than the CPU",
    "nan later": "returns NaN outside the test of the first use",
    "plans": "takes forever to say which devices it uses",
}
TEXTS = ("a fox", "the dog sleeps", "what is learning?", "over the lazy dog")
PID = "pid"  # the file with the process that hangs
_KEPT: list[np.ndarray] = []
_REFERENCES = 3  # to an array in _KEPT, while a loop looks at it, that nobody else holds


class Model:
    """A function of a compiled package."""

    def __init__(self, fault: str, checkpoint: Checkpoint, units: str, cache: Path, is_probe: bool):
        self.fault, self.checkpoint, self.units, self.cache, self.is_probe = fault, checkpoint, units, cache, is_probe

    def predict(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        on_cpu = self.units == "CPU_ONLY"
        if self.fault.startswith("keeps"):
            if any(sys.getrefcount(array) <= _REFERENCES for array in _KEPT):
                os.abort()
            _KEPT[:] = inputs.values()
        if self.fault == "aborts everywhere" or (self.fault == "aborts" and not on_cpu):
            os.abort()
        if self.fault == "hangs" and not on_cpu:
            (self.cache / PID).write_text(str(os.getpid()))
            time.sleep(600)
        outputs = self.outputs(inputs)
        if (self.fault == "nan" and not on_cpu) or (self.fault == "nan later" and not self.is_probe):
            return {name: np.full_like(values, np.nan) for name, values in outputs.items()}
        if self.fault == "wrong" and not on_cpu:
            return {name: np.roll(values, 1, axis=-1) for name, values in outputs.items()}
        return outputs

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        spec = self.checkpoint.spec
        n_tokens = int((inputs[io.KEY_BIAS] == 0).sum())
        x = inputs[io.INPUT_EMBEDS][0, :n_tokens]
        for index in range(spec.n_layers):
            x = block(x, self.checkpoint.layer(index), spec)
        states = np.zeros_like(inputs[io.INPUT_EMBEDS])
        states[0, :n_tokens] = rms_norm(x, self.checkpoint.read("norm.weight"), spec.rms_norm_eps)
        return {io.TOKEN_STATES: states, io.SPAN_MEANS: inputs[io.SPAN_WEIGHTS] @ states}


def play(fault: str, source: Path, cache: Path, *, is_probe: bool) -> None:
    """Replace Core ML in this process."""
    os.environ[hub.CACHE_VARIABLE] = str(cache)
    checkpoint = Checkpoint.open(source)

    def compiled_model(path: str, compute_units: str, function_name: str) -> Model:
        return Model(fault, checkpoint, compute_units, cache, is_probe)

    units = {name: name for name in ("ALL", "CPU_ONLY", "CPU_AND_NE")}
    tools: Any = ModuleType("coreml_tools")
    tools.ct = SimpleNamespace(ComputeUnit=units, models=SimpleNamespace(CompiledMLModel=compiled_model))
    utils: Any = ModuleType("coremltools.models.utils")
    utils.compile_model = lambda _, destination: Path(destination).mkdir()
    sys.modules |= {coreml_probe.load_function.__module__.replace("probe", "tools"): tools}
    sys.modules |= {name: ModuleType(name) for name in ("coremltools", "coremltools.models")} | {utils.__name__: utils}
    for module, name, value in (
        (backends, "require_installed", lambda _: None),
        (coreml_runtime, "require_macos", lambda: None),
        (coreml_runtime, "system_build", lambda: "26.1-25B78"),
        (coreml_probe, "CHILD", (sys.executable, __file__, fault, str(source), str(cache), "probe")),
        (self_test, "texts", lambda: TEXTS),
        (steps, "texts", lambda: TEXTS),
        (steps, "_SECONDS_PER_LENGTH", 0.01),
    ):
        setattr(module, name, value)
    from pplx_edge.backends import coreml_session

    coreml_session.require_macos = lambda: None
    if fault == "plans":
        coreml_runtime.CoreMLRuntime.device = property(lambda _: time.sleep(600))
    if fault == "keeps new arrays" and not is_probe:
        io.permanent_inputs = io.empty_inputs


if __name__ == "__main__":
    _, fault, source, cache, program, *arguments = sys.argv
    play(fault, Path(source), Path(cache), is_probe=program == "probe")
    if program == "probe":
        coreml_probe.main(*arguments)
    elif program == "report":
        steps.BUILT_IN = os.environ["SIMULATED_MODEL"]
        steps.main(*arguments)
    else:
        sys.exit(self_test.main())
