"""The first use of a Core ML function, in a child process, because a failing compiler can end the process or hang.

`python -m pplx_edge.backends.coreml_probe COMPILED LENGTH DIM UNITS FORM` is the child: it predicts, and prints the
milliseconds of the fastest of a few predictions. `choose` starts one child for each form of attention.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge.backends import coreml_io as io
from pplx_edge.errors import ModelError

CPU = "cpu"
TIMEOUT_SECONDS = 600.0  # the Neural Engine compiler takes minutes for a large function
_UNITS = {"all": "ALL", CPU: "CPU_ONLY", "cpu+ane": "CPU_AND_NE"}
CHILD = (sys.executable, "-m", __name__)
_PASSES = 3
_FASTER = 0.8  # the unfused form is chosen when it takes at most this share of the time of the fused one
_SEED = 16


@dataclass(frozen=True, slots=True)
class Choice:
    """How a function runs on this system: on which units, with which form of attention, and why not as requested."""

    units: str
    form: str
    milliseconds: float | None = None
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON."""
        return asdict(self)


def choose(compiled: Path, length: int, dim: int, units: str) -> Choice:
    """Return the fastest form of attention that works on the given units, otherwise the first that works on the CPU.

    If nothing works on the CPU either, the fused form is returned for it, so that its error reaches the caller.
    """
    failures: list[str] = []
    found: dict[str, float] = {}
    for form in io.FORMS:
        result = probe(compiled, length, dim, units, form)
        if isinstance(result, float):
            found[form] = result
        else:
            failures.append(f"{form}: {result}")
    why = "; ".join(failures)
    if found:
        best = io.UNFUSED if found.get(io.UNFUSED, np.inf) < _FASTER * found.get(io.FUSED, np.inf) else io.FUSED
        return Choice(units, best, found[best], why)
    for form in io.FORMS if units != CPU else ():
        if isinstance(result := probe(compiled, length, dim, CPU, form), float):
            return Choice(CPU, form, result, why)
    return Choice(CPU, io.FUSED, None, why)


def probe(compiled: Path, length: int, dim: int, units: str, form: str) -> float | str:
    """Predict in a child process and return its milliseconds, or why it failed."""
    command = [*CHILD, str(compiled), str(length), str(dim), units, form]
    try:
        child = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"no result after {TIMEOUT_SECONDS:,.0f} s"
    except OSError as error:
        return f"the test could not be started ({error})"
    if child.returncode < 0:
        return f"the process was ended by signal {-child.returncode}"
    lines = (child.stdout if child.returncode == 0 else child.stderr).strip().splitlines()
    last = lines[-1] if lines else f"exit status {child.returncode}"
    try:
        return float(last) if child.returncode == 0 else last[:300]
    except ValueError:
        return f"unreadable answer: {last[:200]!r}"


def compute_unit(units: str) -> Any:
    """Return the compute units of coremltools with our name for them."""
    from pplx_edge.backends.coreml_tools import ct

    return ct.ComputeUnit[_UNITS[units]]


def load_function(compiled: Path, length: int, units: str, form: str) -> Any:
    """Load a function of a compiled package."""
    from pplx_edge.backends.coreml_tools import ct

    name = io.function_name(length, form)
    return ct.models.CompiledMLModel(str(compiled), compute_units=compute_unit(units), function_name=name)


def measure(predict: Callable[[dict[str, np.ndarray]], Any], length: int, dim: int) -> float:
    """Return the milliseconds of the fastest prediction for random inputs. Raises ModelError for NaN or infinity."""
    embeds = np.random.default_rng(_SEED).normal(size=(max(1, length - 1), dim)).astype(np.float32)
    inputs = io.row_inputs(embeds, length, [(0, len(embeds))])
    times = []
    for _ in range(_PASSES):
        started = time.perf_counter()
        outputs = predict(dict(inputs))
        times.append(1000 * (time.perf_counter() - started))
        if not all(np.isfinite(outputs[name]).all() for name in (io.TOKEN_STATES, io.SPAN_MEANS)):
            raise ModelError("the outputs contain NaN or infinity")
    return min(times)


def main(compiled: str, length: str, dim: str, units: str, form: str) -> None:
    """Print the milliseconds of a prediction."""
    loaded = load_function(Path(compiled), int(length), units, form)
    print(measure(loaded.predict, int(length), int(dim)))


if __name__ == "__main__":
    main(*sys.argv[1:])
