"""The steps of a report, each run in a child process: `python -m pplx_cli.report.steps NAME ARGUMENTS` prints JSON."""

import importlib.metadata
import json
import platform
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pplx_cli.self_test import recorded_warnings, texts
from pplx_edge import backends
from pplx_edge.embedder import load
from pplx_edge.errors import EdgeError
from pplx_edge.preparation import ResolvedModel, resolve_model
from pplx_edge.registry import BACKENDS, COREML, EXACT_FORMAT, MLX, ONNX, entry
from pplx_edge.system import macos_version
from pplx_edge.vectors.similarity import paired_cosines
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.host import describe_host, peak_rss

_METAL = "mlx-metal"  # the distribution with the GPU kernels of MLX
# An M5 reaches 15 TFLOP/s without its neural accelerators and about 56 with them.
_ACCELERATED_TFLOPS = 25.0
_FIX = "SYSTEM_VERSION_COMPAT=0 pip install --force-reinstall mlx mlx-metal"
_SECONDS_PER_LENGTH = 2.0
_WORD = " model"


class Skipped(Exception):
    """A step that this machine cannot run; the message is the reason."""


def machine() -> dict[str, Any]:
    """Return the host, the real release of the system, Python, and the wheel tags of MLX."""
    host = describe_host()
    names = (*(name for backend in BACKENDS.values() for name in backend.distributions), _METAL)
    return {
        "chip": host.chip,
        "n_cores": host.n_cores,
        "memory_bytes": host.memory_bytes,
        "system": host.system,
        "real_system": " ".join(filter(None, macos_version())),
        "reported_release": platform.mac_ver()[0] or platform.release(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "wheels": {name: wheel_tags(name) for name in names},
    }


def wheel_tags(name: str) -> list[str]:
    """Return the version of an installed distribution and the tags of its wheel, or nothing if it is not installed."""
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return []
    return [distribution.version, *re.findall(r"(?m)^Tag: (\S+)", distribution.read_text("WHEEL") or "")]


def matmul() -> dict[str, Any]:
    """Return the TFLOP/s of one matrix product on the GPU, and advice for an M5 without its neural accelerators."""
    backends.require_installed(MLX)
    from pplx_edge.backends.mlx_matmul import SHAPE, architecture, matmul_tflops

    if not (gpu := architecture()):
        raise Skipped("no Metal GPU here")
    bf16, fp32 = (round(matmul_tflops(dtype), 2) for dtype in ("bfloat16", "float32"))
    result = {"shape": SHAPE, "architecture": gpu, "bfloat16_tflops": bf16, "float32_tflops": fp32}
    advice = accelerator_advice(gpu, bf16, wheel_tags(_METAL))
    return result | ({"advice": advice} if advice else {})


def proof(backend: str) -> dict[str, Any]:
    """Test the kernels of a backend that are off until proven, remember the result, and return the findings."""
    backends.require_installed(BACKENDS[backend])
    found = dict(entry(BACKENDS[backend].proof)())
    if not found["note"]:
        raise Skipped("no GPU here that these kernels are for")
    return found


def accelerator_advice(architecture: str, tflops: float, tags: list[str]) -> str:
    """Return how to get the neural accelerators of an M5 or later if MLX does not use them, otherwise ''."""
    found = re.search(r"applegpu_g(\d+)", architecture)
    if not found or int(found[1]) < 17:
        return ""
    releases = [int(major) for tag in tags for major in re.findall(r"macosx_(\d+)_", tag)]
    if releases and max(releases) < 26:
        return f"the wheel of mlx-metal was built for macOS {max(releases)}, without neural accelerators; run: {_FIX}"
    if tflops < _ACCELERATED_TFLOPS:
        return f"{tflops} TFLOP/s is the speed without neural accelerators, which need macOS 26.2; update, then: {_FIX}"
    return ""


def speed(artifact_format: str, lengths: str) -> dict[str, Any]:
    """Return the tokens per second of a format of the built-in model for inputs of each length, and the memory."""
    backend, _, stored = artifact_format.partition(":")
    model = load(BUILT_IN, backend=backend, artifact_format=stored or None)
    result: dict[str, Any] = {"tokens_per_second": {}}
    for length in map(int, lengths.split(",")):
        if length > model.session.spec.max_tokens:
            result["tokens_per_second"][str(length)] = None
            continue
        text = _text(model, length)
        n_tokens = model.tokenizer.count(text)
        model.encode([text])
        n_passes, started = 0, time.perf_counter()
        while n_passes == 0 or time.perf_counter() - started < _SECONDS_PER_LENGTH:
            model.encode([text])
            n_passes += 1
        result["tokens_per_second"][str(n_tokens)] = round(n_passes * n_tokens / (time.perf_counter() - started), 1)
    return result | {"device": model.session.device, "peak_bytes": peak_rss()}


def convert(artifact_format: str) -> dict[str, Any]:
    """Convert the built-in model to a format, for the steps that follow, and return seconds, size and parity."""
    backend, _, stored = artifact_format.partition(":")
    started = time.perf_counter()
    artifact = resolve_model(BUILT_IN, backend=backend, artifact_format=stored).artifact
    assert artifact is not None
    return {
        "convert_seconds": round(time.perf_counter() - started, 1),
        "bytes": sum(entry["bytes"] for entry in artifact.files.values()),
        "parity": {name: value for name, value in artifact.parity.items() if name != "layer_cosines"},
        "peak_bytes": peak_rss(),
    }


def parity(artifact_format: str) -> dict[str, Any]:
    """Return the smallest cosine of a format's int8 codes of the built-in model with the exact ones."""
    backend, _, stored = artifact_format.partition(":")
    found, exact = (
        load(BUILT_IN, backend=name, artifact_format=format).encode(texts()).astype(np.float64)
        for name, format in ((backend, stored), (ONNX.name, EXACT_FORMAT))
    )
    return {"min_cosine": float(paired_cosines(found, exact).min()), "largest_step": int(np.abs(found - exact).max())}


def _text(model: Any, length: int) -> str:
    n_words = length
    while n_words > 1 and model.tokenizer.count(_WORD * n_words) > length:
        n_words -= 1
    return _WORD * n_words


def coreml_function(artifact_format: str, length: str, units: str, form: str) -> dict[str, Any]:
    """Return the milliseconds of one Core ML function of the built-in model, and its cosine with the reference."""
    from pplx_edge.backends import coreml_probe

    model, runtime = _coreml(artifact_format, units)
    started = time.perf_counter()
    loaded = coreml_probe.load_function(runtime.compiled, int(length), units, form)
    load_seconds = time.perf_counter() - started
    reference = coreml_probe.Reference.read(model.directory, int(length))
    milliseconds, cosine = coreml_probe.measure(loaded.predict, int(length), reference)
    return {"load_seconds": round(load_seconds, 3), "milliseconds": milliseconds, "cosine": cosine}


def coreml_plan(artifact_format: str, units: str) -> dict[str, Any]:
    """Return where Core ML places the operators of the default function of the built-in model."""
    return {"device": _coreml(artifact_format, units)[1].device}


def _coreml(artifact_format: str, units: str) -> tuple[ResolvedModel, Any]:
    """Return the built-in model, converted at most once, and its compiled package on some compute units."""
    from pplx_edge.backends.coreml_probe import least_cosine
    from pplx_edge.backends.coreml_runtime import CoreMLRuntime, require_macos

    require_macos()
    model = resolve_model(BUILT_IN, backend=COREML.name, artifact_format=artifact_format)
    assert model.artifact is not None
    least = least_cosine(model.artifact.parity)
    return model, CoreMLRuntime(model.directory, model.fingerprint, units, least)


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "machine": machine,
    "matmul": matmul,
    "proof": proof,
    "convert": convert,
    "parity": parity,
    "speed": speed,
    "coreml_function": coreml_function,
    "coreml_plan": coreml_plan,
}


def main(name: str, *arguments: str) -> None:
    """Run a step and print its result as the last line."""
    with recorded_warnings() as said:
        try:
            result = {"status": "ok"} | STEPS[name](*arguments)
        except Skipped as error:
            result = {"status": "skipped", "why": str(error)}
        except EdgeError as error:
            result = {"status": "failed", "why": str(error)}
    result |= {"warnings": said} if said else {}
    np.seterr(all="ignore")
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
