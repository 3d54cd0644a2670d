"""The steps of a report, each run in a child process: `python -m pplx_cli.report.steps NAME ARGUMENTS` prints JSON."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pplx_cli.self_test import texts
from pplx_edge import backends
from pplx_edge.embedder import load
from pplx_edge.errors import EdgeError
from pplx_edge.registry import BACKENDS, EXACT_FORMAT, MLX, ONNX
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
        "real_system": _real_system(),
        "reported_release": platform.mac_ver()[0] or platform.release(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "wheels": {name: wheel_tags(name) for name in names},
    }


def _real_system() -> str:
    """Return what sw_vers says of macOS, without the 16.0 that it tells older programs; empty on other systems."""
    try:
        run = subprocess.run(
            ["/usr/bin/sw_vers"],
            env=os.environ | {"SYSTEM_VERSION_COMPAT": "0"},
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return " ".join(line.partition(":")[2].strip() for line in run.stdout.splitlines())


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
    """Return the milliseconds of one Core ML function of the built-in model."""
    from pplx_edge.backends.coreml_runtime import require_macos

    require_macos()
    from pplx_convert import convert
    from pplx_edge import layout
    from pplx_edge.backends import coreml_probe, coreml_runtime
    from pplx_edge.spec import ModelSpec
    from pplx_edge.weights import hub

    directory = hub.locate(BUILT_IN)
    with tempfile.TemporaryDirectory() as folder:
        artifact = convert(directory, Path(folder, "model"), artifact_format)
        runtime = coreml_runtime.CoreMLRuntime(
            artifact.path(layout.COREML_PACKAGE),
            artifact.fingerprint,
            units,
            ModelSpec.from_directory(directory).hidden_size,
        )
        started = time.perf_counter()
        loaded = coreml_probe.load_function(runtime.compiled, int(length), units, form)
        load_seconds = time.perf_counter() - started
        dim = ModelSpec.from_directory(directory).hidden_size
        milliseconds = coreml_probe.measure(loaded.predict, int(length), dim)
        return {"load_seconds": load_seconds, "milliseconds": milliseconds, "device": runtime.device}


STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "machine": machine,
    "matmul": matmul,
    "parity": parity,
    "speed": speed,
    "coreml_function": coreml_function,
}


def main(name: str, *arguments: str) -> None:
    """Run a step and print its result as the last line."""
    try:
        result = {"status": "ok"} | STEPS[name](*arguments)
    except Skipped as error:
        result = {"status": "skipped", "why": str(error)}
    except EdgeError as error:
        result = {"status": "failed", "why": str(error)}
    np.seterr(all="ignore")
    print("\n" + json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
