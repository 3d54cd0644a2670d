"""Prove the fused kernel of the residual stream on this GPU, before it is used, and remember the result.

The kernel was written without a GPU. It stays off until `prove`, which `doctor` calls, has found that it computes what
MLX computes and is faster. The result holds for one build of macOS, one version of MLX and one kind of GPU.
"""

import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from pplx_edge.errors import StorageError
from pplx_edge.files import replacing_file
from pplx_edge.models.mlx_add_norm import fused_add_norm
from pplx_edge.models.qwen3_mlx import Model, StreamNorm
from pplx_edge.system import macos_version
from pplx_edge.weights import hub

_DIMS = (512, 1024, 2560)  # of the stream in nano and in the 0.6b and 4b models
_ROWS = 200
_MAGNITUDES = (1e-2, 1.0, 3e4)
_LARGEST_TERM = 6e4  # float16 holds no more
_ULP = {mx.bfloat16: 2.0**-7, mx.float16: 2.0**-10}  # the largest relative distance of neighboring numbers
_TIMED_SHAPE = (4096, 1024)
_STEPS = 32  # additions in one timed pass
_PASSES = 5
_FASTER = 0.95  # the kernel is used when it takes at most this share of the time


def use_proven_kernels(model: Model) -> None:
    """Switch the model to the fused kernel if it was proven on this machine."""
    if is_proven():
        for module in model.modules():
            if isinstance(module, StreamNorm):
                module.fused = True


def is_proven() -> bool:
    """Return whether the kernel was proven on this GPU, with this version of MLX and this build of macOS."""
    if not mx.metal.is_available():
        return False
    try:
        return json.loads(_file().read_text(encoding="utf-8"))["proven"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return False


def prove() -> dict[str, Any]:
    """Test the kernel, remember whether to use it, and return the findings, with a sentence for `doctor` in `note`."""
    if not mx.metal.is_available():
        return {"proven": False, "note": ""}
    try:
        found = findings()
    except Exception as error:  # the compiler of Metal raises RuntimeError and other types
        found = {"proven": False, "note": f"the fused kernel cannot be used here ({error})"}
    try:
        with replacing_file(_file()) as new:
            new.write_text(json.dumps(found), encoding="utf-8")
    except (OSError, StorageError) as error:
        found["note"] += f"; not remembered ({error})"
    return found


def findings() -> dict[str, Any]:
    """Return whether the kernel should be used, the largest error in units of the last place, and the speedup."""
    error = max(largest_error(dim, dtype) for dim in _DIMS for dtype in _ULP)
    if error > 1:
        note = f"the fused kernel is wrong here, by {error:.1f} units of the last place; it stays off"
        return {"proven": False, "error_ulp": error, "note": note}
    separate, fused = _seconds(fused=False), _seconds(fused=True)
    proven = fused <= _FASTER * separate
    note = f"the fused kernel takes {fused / separate:.0%} of the time and is {'on' if proven else 'off'}"
    return {"proven": proven, "error_ulp": error, "time_share": round(fused / separate, 3), "note": note}


def largest_error(dim: int, dtype: mx.Dtype) -> float:
    """Return the largest error of the kernel in units of the last place, compared with MLX's own kernels.

    It is infinite if a sum differs or a value is not finite.
    """
    rng, worst = np.random.default_rng(dim), 0.0
    norm = StreamNorm(dim, 1e-6)
    norm.weight = mx.array(rng.uniform(0.5, 2, dim).astype(np.float32))
    for magnitude in _MAGNITUDES:
        x, y = (mx.array((magnitude * rng.standard_normal((_ROWS, dim))).astype(np.float32)) for _ in range(2))
        y = mx.clip(y, -_LARGEST_TERM, _LARGEST_TERM).astype(dtype)
        expected, ours = norm.add(x, y, dtype), fused_add_norm(x, y, norm.weight, norm.eps, dtype)
        (sums, normed), (our_sums, our_normed) = (
            [np.array(array.astype(mx.float32)) for array in pair] for pair in (expected, ours)
        )
        if not np.array_equal(sums, our_sums) or not np.isfinite(our_normed).all():
            return float("inf")
        smallest = np.finfo(np.float16).smallest_subnormal if dtype == mx.float16 else np.finfo(np.float32).tiny
        step = np.maximum(np.abs(normed) * _ULP[dtype], smallest)
        worst = max(worst, float((np.abs(normed - our_normed) / step).max()))
    return worst


def _seconds(*, fused: bool) -> float:
    """Return the seconds of the fastest pass of additions and norms."""
    norm = StreamNorm(_TIMED_SHAPE[1], 1e-6)
    norm.fused = fused
    start = mx.random.normal(_TIMED_SHAPE)
    times = []
    for _ in range(_PASSES + 1):  # the first includes compilation
        x, y = start, start.astype(mx.bfloat16)
        mx.eval(x, y)
        started = time.perf_counter()
        for _ in range(_STEPS):
            x, y = norm.add(x, y, mx.bfloat16)
        mx.eval(x, y)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _file() -> Path:
    """Return the file that remembers the result for this machine."""
    gpu = mx.device_info().get("architecture", "unknown")
    system = "-".join(filter(None, macos_version()))
    return hub.cache_directory() / "mlx" / f"add-norm-macos{system}-mlx{version('mlx')}-{gpu}.json"
