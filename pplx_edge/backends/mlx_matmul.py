"""Measure the speed of one matrix product on the GPU, which shows whether MLX uses the neural accelerators of an M5."""

import time

import mlx.core as mx

SHAPE = (2048, 1024, 3072)  # rows, inner size, columns
_PASSES = 20


def architecture() -> str:
    """Return the architecture of the GPU, for example `applegpu_g17s`, or "" if there is no Metal GPU."""
    return str(mx.device_info().get("architecture", "")) if mx.metal.is_available() else ""


def matmul_tflops(dtype: str) -> float:
    """Return the TFLOP/s of a product of two matrices of a type, for example `bfloat16`."""
    m, k, n = SHAPE
    a, b = (mx.random.normal(shape).astype(getattr(mx, dtype)) for shape in ((m, k), (k, n)))
    mx.eval(a, b, a @ b)
    started = time.perf_counter()
    for _ in range(_PASSES):
        mx.eval(a @ b)
    return 2 * m * k * n * _PASSES / (time.perf_counter() - started) / 1e12
