"""A Metal kernel for the residual stream: add a term, normalize the sum, and convert the result, in one pass.

MLX runs three kernels for this and writes and reads the float32 result of the norm in between. This kernel reads the
stream and the term once and writes the sum and its norm. A threadgroup computes one row, with the row in registers.
`backends.mlx_proof` decides whether it is used.
"""

from functools import cache
from typing import Any

import mlx.core as mx

_SIMD = 32  # threads that add up a value in one instruction, on every Apple GPU
_MOST_THREADS = 256

# The body of the kernel; MLX writes the signature. x, weight and stream are float32, T is the type of normed.
SOURCE = """
    uint lane = thread_position_in_threadgroup.x;
    uint row = threadgroup_position_in_grid.x * DIM;
    threadgroup float partial[THREADS / 32];
    float values[PER_THREAD];
    float total = 0.0f;
    for (uint i = 0; i < PER_THREAD; ++i) {
        uint column = lane + i * THREADS;
        values[i] = column < DIM ? x[row + column] + float(y[row + column]) : 0.0f;
        total += values[i] * values[i];
    }
    total = simd_sum(total);
    if (thread_index_in_simdgroup == 0) {
        partial[simdgroup_index_in_threadgroup] = total;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    total = 0.0f;
    for (uint i = 0; i < THREADS / 32; ++i) {
        total += partial[i];
    }
    float scale = metal::precise::rsqrt(total / DIM + eps[0]);
    for (uint i = 0; i < PER_THREAD; ++i) {
        uint column = lane + i * THREADS;
        if (column < DIM) {
            stream[row + column] = values[i];
            normed[row + column] = T(values[i] * scale * weight[column]);
        }
    }
"""


def fused_add_norm(
    x: mx.array, y: mx.array, weight: mx.array, eps: float, dtype: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """Return `x + y`, float32 `[S, D]`, and its RMSNorm in another type; x and weight are float32. Needs Metal."""
    n_rows, dim = x.shape
    template = constants(dim)
    threads = template["THREADS"]
    stream, normed = _kernel()(
        inputs=[x, y, weight, _scalar(eps)],
        template=[("T", dtype), *template.items()],
        grid=(n_rows * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[x.shape, x.shape],
        output_dtypes=[mx.float32, dtype],
    )
    return stream, normed


def constants(dim: int) -> dict[str, int]:
    """Return the constants of the kernel for rows of `dim` values: DIM, THREADS in a row and values PER_THREAD."""
    threads = min(-(-dim // _SIMD) * _SIMD, _MOST_THREADS)
    return {"DIM": dim, "THREADS": threads, "PER_THREAD": -(-dim // threads)}


@cache
def _kernel() -> Any:
    return mx.fast.metal_kernel(
        name="pplx_add_norm",
        input_names=["x", "y", "weight", "eps"],
        output_names=["stream", "normed"],
        source=SOURCE,
    )


@cache
def _scalar(eps: float) -> mx.array:
    return mx.array([eps], mx.float32)
