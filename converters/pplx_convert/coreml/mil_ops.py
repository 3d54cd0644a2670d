"""The operators of Core ML programs, implemented in NumPy and float32 according to their documentation.

A handler takes the operator's arguments by name, with floating-point arrays as float32, and returns its output or a
tuple of outputs. No code is shared with the modules that build programs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pplx_edge.errors import UnsupportedModel

Arguments = Mapping[str, Any]
VARIADIC = {"concat": "values"}  # operators with a list argument, and the name of that argument


def _axes(args: Arguments) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.atleast_1d(args["axes"]))


def _reduced(function: Callable[..., np.ndarray]) -> Callable[[Arguments], np.ndarray]:
    return lambda args: function(args["x"], axis=_axes(args), keepdims=bool(args["keep_dims"]))


def _linear(args: Arguments) -> np.ndarray:
    return args["x"] @ args["weight"].T + args["bias"]


def _matmul(args: Arguments) -> np.ndarray:
    x, y = args["x"], args["y"]
    x = np.swapaxes(x, -1, -2) if args["transpose_x"] else x
    y = np.swapaxes(y, -1, -2) if args["transpose_y"] else y
    return x @ y


def _reshape(args: Arguments) -> np.ndarray:
    x, shape = args["x"], [int(size) for size in args["shape"]]
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def _split(args: Arguments) -> tuple[np.ndarray, ...]:
    return tuple(np.split(args["x"], int(args["num_splits"]), axis=int(args["axis"])))


def _rsqrt(args: Arguments) -> np.ndarray:
    return 1 / np.sqrt(args["x"] + args["epsilon"])


def _silu(args: Arguments) -> np.ndarray:
    x = args["x"]
    return x * (np.float32(0.5) * (1 + np.tanh(np.float32(0.5) * x)))  # exp(-x) would overflow


def _attention(args: Arguments) -> np.ndarray:
    """Return softmax(q kᵀ / sqrt(d) + mask) v, one head at a time to keep only one head's scores in memory."""
    q, k, v = args["query"], args["key"], args["value"]
    batch = q.shape[:-2]
    mask = np.broadcast_to(args["attn_mask"], (*batch, q.shape[-2], k.shape[-2]))
    out = np.empty((*q.shape[:-1], v.shape[-1]), np.float32)
    for head in np.ndindex(*batch):
        scores = q[head] @ k[head].T / np.float32(np.sqrt(q.shape[-1])) + mask[head]
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[head] = scores / scores.sum(axis=-1, keepdims=True) @ v[head]
    return out


def _cast(args: Arguments) -> np.ndarray:
    if args["dtype"] not in ("fp16", "fp32"):
        raise UnsupportedModel(f"the evaluation supports casts to fp16 and fp32, not to {args['dtype']}")
    return args["x"]  # values are float32 here; those declared as float16 are rounded afterwards


def _shift_scale(args: Arguments) -> np.ndarray:
    data, scale = args["data"].astype(np.float32), args["scale"]
    if "offset" in args:
        data = data - _repeated(args["offset"].astype(np.float32), data.shape)
    return data * _repeated(scale, data.shape)


def _lut_to_dense(args: Arguments) -> np.ndarray:
    """Look up each index in the palette of its block; palettes are `[*blocks, 2**bits, 1]`."""
    indices, lut = args["indices"], args["lut"]
    *blocks, n_values, width = lut.shape
    if width != 1:
        raise UnsupportedModel(f"the evaluation supports palettes of single values, not of vectors of {width}")
    palette_of = _repeated(np.arange(int(np.prod(blocks))).reshape(blocks), indices.shape)
    return lut.reshape(-1, n_values)[palette_of, indices]


def _repeated(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return values per block, repeated to the full shape. Axes that already match are not repeated."""
    for axis, size in enumerate(shape):
        if values.shape[axis] not in (1, size):
            values = np.repeat(values, size // values.shape[axis], axis)
    return np.broadcast_to(values, shape)


HANDLERS: dict[str, Callable[[Arguments], Any]] = {
    "abs": lambda args: np.abs(args["x"]),
    "add": lambda args: args["x"] + args["y"],
    "cast": _cast,
    "concat": lambda args: np.concatenate(args["values"], axis=int(args["axis"])),
    "constexpr_blockwise_shift_scale": _shift_scale,
    "constexpr_lut_to_dense": _lut_to_dense,
    "exp": lambda args: np.exp(args["x"]),
    "inverse": lambda args: 1 / (args["x"] + args["epsilon"]),
    "linear": _linear,
    "matmul": _matmul,
    "maximum": lambda args: np.maximum(args["x"], args["y"]),
    "mul": lambda args: args["x"] * args["y"],
    "real_div": lambda args: args["x"] / args["y"],
    "reduce_max": _reduced(np.max),
    "reduce_mean": _reduced(np.mean),
    "reduce_sum": _reduced(np.sum),
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "scaled_dot_product_attention": _attention,
    "silu": _silu,
    "split": _split,
    "sub": lambda args: args["x"] - args["y"],
    "transpose": lambda args: np.transpose(args["x"], [int(axis) for axis in args["perm"]]),
}
