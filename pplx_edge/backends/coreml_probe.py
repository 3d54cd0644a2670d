"""The first use of a Core ML function, in a child process, because a failing compiler can end the process or hang.

`python -m pplx_edge.backends.coreml_probe COMPILED MODEL LENGTH UNITS FORM` is the child: it predicts a few times with
the converted model in the directory MODEL, and prints the milliseconds of the fastest prediction and the cosine of the
result with the vector that the reference computed during the conversion. `choose` starts one child for each form of
attention.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge import layout
from pplx_edge.backends import coreml_io as io
from pplx_edge.backends.coreml_table import EmbeddingTable
from pplx_edge.errors import ArtifactError, CheckpointError, ModelError
from pplx_edge.spec import ModelSpec
from pplx_edge.vectors.similarity import paired_cosines
from pplx_edge.weights.safetensors import read_header

CPU = "cpu"
TIMEOUT_SECONDS = 600.0  # the Neural Engine compiler takes minutes for a large function
_UNITS = {"all": "ALL", CPU: "CPU_ONLY", "cpu+ane": "CPU_AND_NE"}
CHILD = (sys.executable, "-m", __name__)
_PASSES = 3
_FASTER = 0.8  # the unfused form is chosen when it takes at most this share of the time of the fused one
# A function may be twice as far from the reference as the conversion was, and this much further.
_TOLERANCE = 0.005


@dataclass(frozen=True, slots=True)
class Choice:
    """How a function runs on this system: on which units, with which form of attention, and why not as requested.

    `units` is empty if it runs nowhere. `cosine` is that of the result with the reference.
    """

    units: str
    form: str
    milliseconds: float | None = None
    cosine: float | None = None
    why: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Reference:
    """An embedded row, float32 `[n, D]`, and its mean state according to the reference, float32 `[D]`."""

    embeds: np.ndarray
    mean: np.ndarray

    @classmethod
    def read(cls, model: Path, length: int) -> "Reference":
        """Read the row that tests the function of a length. Raises ArtifactError if the model contains none."""
        spec = ModelSpec.from_directory(model)
        table = EmbeddingTable.open(model / layout.COREML_TABLE, (spec.vocab_size, spec.hidden_size))
        try:
            stored = read_header(model / layout.COREML_PROBE, ("U32", "F32"))
            ids = stored[io.PROBE_IDS].array()[: io.probe_tokens(length)]
            return cls(table.rows(ids.astype(np.int64)), stored[io.probe_mean(len(ids))].array())
        except (CheckpointError, KeyError) as error:
            raise ArtifactError(
                f"{model}: no reference for {length} tokens ({error}); convert the model again"
            ) from None


def least_cosine(parity: Mapping[str, Any]) -> float:
    """Return the least cosine with the reference of a sound function, given the parity figures of the conversion."""
    return 1 - 2 * (1 - float(parity.get("min_cosine", 1))) - _TOLERANCE


def choose(compiled: Path, model: Path, length: int, units: str, least: float) -> Choice:
    """Return the fastest form of attention that works on the given units, otherwise the first that works on the CPU.

    A form works if its child ends with a cosine of at least `least`.
    """
    failures: list[str] = []
    found: dict[str, tuple[float, float]] = {}
    for form in io.FORMS:
        result = probe(compiled, model, length, units, form, least)
        if isinstance(result, str):
            failures.append(f"{form}: {result}")
        else:
            found[form] = result
    why = "; ".join(failures)
    if found:
        nowhere = (np.inf, 0.0)
        faster = found.get(io.UNFUSED, nowhere)[0] < _FASTER * found.get(io.FUSED, nowhere)[0]
        best = io.UNFUSED if faster else io.FUSED
        return Choice(units, best, *found[best], why)
    for form in io.FORMS if units != CPU else ():
        result = probe(compiled, model, length, CPU, form, least)
        if not isinstance(result, str):
            return Choice(CPU, form, *result, why)
        why += f"; {form} on the {CPU}: {result}"
    return Choice("", "", why=why)


def probe(compiled: Path, model: Path, length: int, units: str, form: str, least: float) -> tuple[float, float] | str:
    """Predict in a child process and return its milliseconds and its cosine, or why it failed."""
    command = [*CHILD, str(compiled), str(model), str(length), units, form]
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
    if child.returncode:
        return last[:300]
    try:
        milliseconds, cosine = map(float, last.split())
    except ValueError:
        return f"unreadable answer: {last[:200]!r}"
    if cosine < least:
        return f"wrong vectors: cosine {cosine:.4f} with the reference, at least {least:.4f} is expected"
    return milliseconds, cosine


def compute_unit(units: str) -> Any:
    """Return the compute units of coremltools with our name for them."""
    from pplx_edge.backends.coreml_tools import ct

    return ct.ComputeUnit[_UNITS[units]]


def load_function(compiled: Path, length: int, units: str, form: str) -> Any:
    """Load a function of a compiled package."""
    from pplx_edge.backends.coreml_tools import ct

    name = io.function_name(length, form)
    return ct.models.CompiledMLModel(str(compiled), compute_units=compute_unit(units), function_name=name)


def measure(
    predict: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]], length: int, reference: Reference
) -> tuple[float, float]:
    """Return the milliseconds of the fastest prediction that fills the function, and the cosine with the reference.

    Raises ModelError for NaN or infinity.
    """
    n_tokens, dim = reference.embeds.shape
    inputs = io.permanent_inputs(length, dim)
    io.fill_inputs(inputs, reference.embeds, [(0, n_tokens)])
    outputs = _finite(predict(dict(inputs)))
    means = np.stack([outputs[io.SPAN_MEANS][0, 0], outputs[io.TOKEN_STATES][0, :n_tokens].mean(axis=0)])
    cosine = paired_cosines(means, np.broadcast_to(reference.mean, means.shape)).min()
    io.fill_inputs(inputs, np.resize(reference.embeds, (length, dim)), [(0, length)])
    times = []
    for _ in range(_PASSES):
        started = time.perf_counter()
        outputs = predict(dict(inputs))
        times.append(1000 * (time.perf_counter() - started))
        _finite(outputs)
    return min(times), float(cosine)


def _finite(outputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    if not all(np.isfinite(outputs[name]).all() for name in (io.TOKEN_STATES, io.SPAN_MEANS)):
        raise ModelError("the outputs contain NaN or infinity")
    return outputs


def main(compiled: str, model: str, length: str, units: str, form: str) -> None:
    """Print the milliseconds of a prediction and its cosine with the reference."""
    loaded = load_function(Path(compiled), int(length), units, form)
    print(*measure(loaded.predict, int(length), Reference.read(Path(model), int(length))))


if __name__ == "__main__":
    main(*sys.argv[1:])
