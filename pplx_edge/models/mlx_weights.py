"""Load weights into the MLX encoder, from float checkpoints and from repositories written by MLX tools.

The weights of a float checkpoint can be quantized while they are read.
"""

import json
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from pplx_edge import layout
from pplx_edge.errors import CheckpointError, InputError
from pplx_edge.models.mlx_quantization import (
    QuantizationPlan,
    WeightFormat,
    fits,
    quantized,
    weight_format_named,
)
from pplx_edge.models.qwen3_mlx import HEAD, PREFIX, Model, ModelArgs, is_stream_norm
from pplx_edge.spec import DIVIDED_MODEL_TYPE, ModelSpec
from pplx_edge.weights.checkpoint import Checkpoint, weight_files
from pplx_edge.weights.rounding import residual_share

DTYPES = {"bf16": mx.bfloat16, "fp16": mx.float16, "fp32": mx.float32}
# In float16, the weights of a checkpoint divide the residual stream by 2**8. The stream itself is float32, so this only
# has to keep what the branches add, up to 2**18 in the released models, below 2**16. Conversions measure it instead.
_RESIDUAL_EXPONENT = 8
_MEMORY_SHARE = 0.6  # of the recommended working set; the rest is for activations and other programs
_WITHOUT_BFLOAT16 = (13, 14)  # generations of Apple GPUs, `applegpu_g13s` for one: M1 and M2
_WORD_BITS = 32


def open_model(directory: Path, weights: str | None = None) -> Model:
    """Load the encoder from a directory, reading and checking its weights.

    `weights` is the weight format for a float checkpoint: a name in WEIGHT_FORMATS, `bf16`, `fp16` or `fp32`; the
    default is `default_weights`. Raises CheckpointError, UnsupportedModel, or InputError if the name is unknown or the weights are already quantized.
    """
    if not mx.metal.is_available():
        mx.disable_compile()  # on a CPU, MLX would run a C++ compiler for each new shape
    config = _config(directory)
    spec = ModelSpec.from_directory(directory)
    plan = QuantizationPlan.from_config(config, str(directory / layout.CONFIG))
    if plan.default is None:
        divided = config.get("model_type") == DIVIDED_MODEL_TYPE
        stored_as = weights or ("fp16" if divided else default_weights(spec))
        exponent = _RESIDUAL_EXPONENT if stored_as == "fp16" and not divided else 0
        return _from_floats(Checkpoint.open(directory, spec), stored_as, exponent)
    if weights is not None:
        raise InputError(f"{directory}: the weights are already quantized; load it without weights={weights!r}")
    return _from_mlx(directory, spec)


def default_weights(spec: ModelSpec) -> str:
    """Return the format that the weights of a checkpoint get on this machine, and warn if they are quantized.

    It is `q8` if bfloat16 would take more than 60 % of the memory that Metal recommends, `fp16` on GPUs that have no
    bfloat16 (M1 and M2), and otherwise `bf16`.
    """
    if not mx.metal.is_available():
        return "bf16"
    device = mx.device_info()
    size, advised = 2 * spec.n_parameters, float(device.get("max_recommended_working_set_size") or math.inf)
    if size > _MEMORY_SHARE * advised:
        warnings.warn(
            f"the weights are loaded as q8: bf16 would take {size / 1e9:.1f} GB, and Metal recommends at most "
            f"{advised / 1e9:.1f} GB for everything on this machine; load(weights='bf16') loads them as they are",
            stacklevel=2,
        )
        return "q8"
    found = re.search(r"g(\d+)", str(device.get("architecture")))
    return "fp16" if found and int(found[1]) in _WITHOUT_BFLOAT16 else "bf16"


def uniform_plan(spec: ModelSpec, weight_format: WeightFormat) -> QuantizationPlan:
    """Return a plan with one weight format for every matrix whose rows fit its groups; other matrices stay floats."""
    left = {path: None for path, (_, n_columns) in matrices(spec).items() if not fits(weight_format, n_columns)}
    return QuantizationPlan(weight_format, left)


def matrices(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Return the shape `[out, in]` of every matrix of the model, by module path."""
    shapes = spec.tensor_shapes().items()
    return {name.removesuffix(".weight"): (shape[0], shape[1]) for name, shape in shapes if len(shape) == 2}


def _from_floats(checkpoint: Checkpoint, stored_as: str, exponent: int) -> Model:
    """Return the model of a float checkpoint, with the residual stream divided by `2**exponent`."""
    spec, dtype = checkpoint.spec, DTYPES.get(stored_as)
    plan = QuantizationPlan() if dtype else uniform_plan(spec, weight_format_named(stored_as))
    paths = matrices(spec)
    weights: dict[str, mx.array] = {}
    for name in spec.tensor_shapes():
        path = name.removesuffix(".weight")
        if path not in paths:
            kept = mx.float32 if is_stream_norm(name) else dtype or mx.bfloat16
            weights[name] = mx.array(checkpoint.read(name)).astype(kept)
            continue
        weight_format, share = plan.weight_format(path), residual_share(name, exponent)
        blocks = []
        for rows in checkpoint.row_blocks(name):
            values = mx.array(np.ldexp(rows, -share) if share else rows)
            blocks.append(
                quantized(values, weight_format) if weight_format else {"weight": values.astype(dtype or mx.bfloat16)}
            )
            mx.eval(blocks[-1])  # evaluate now, to free the float32 rows before the next ones are read
        for part in blocks[0]:
            weights[f"{path}.{part}"] = mx.concatenate([block[part] for block in blocks])
            mx.eval(weights[f"{path}.{part}"])
    spec = replace(spec, residual_divisor=spec.residual_divisor * 2**exponent)
    return _assembled(spec, weights, {path: plan.weight_format(path) for path in paths})


class StoredWeights:
    """The tensors of a repository written by MLX tools, mapped from its files and decoded one by one."""

    def __init__(self, directory: Path, spec: ModelSpec):
        """Map the tensors. Raises CheckpointError if MLX cannot read a file, or for an invalid tensor."""
        plan = QuantizationPlan.from_config(_config(directory), str(directory / layout.CONFIG))
        self.arrays = _arrays(directory)
        self.weight_formats = {
            path: _stored_format(directory, self.arrays, path, shape, plan) for path, shape in matrices(spec).items()
        }
        _require_match(directory, spec, self.arrays, self.weight_formats)

    def read(self, name: str) -> np.ndarray:
        """Return a dequantized tensor as float32, by its checkpoint name."""
        return self._decoded(name.removesuffix(".weight"), slice(None))

    def rows(self, path: str, rows: np.ndarray) -> np.ndarray:
        """Return the rows of a matrix with indices `[R]`, dequantized: float32 `[R, columns]`."""
        return self._decoded(path, mx.array(rows))

    def _decoded(self, path: str, rows: mx.array | slice) -> np.ndarray:
        weight, weight_format = self.arrays[f"{path}.weight"][rows], self.weight_formats.get(path)
        if weight_format is None:
            return as_numpy(weight)
        scales, biases = self.arrays[f"{path}.scales"][rows], None
        if weight_format.mode == "affine":  # convert to float32 first, otherwise products are rounded to bfloat16
            scales = scales.astype(mx.float32)
            biases = self.arrays[f"{path}.biases"][rows].astype(mx.float32)
        return as_numpy(
            mx.dequantize(weight, scales, biases, weight_format.group_size, weight_format.bits, mode=weight_format.mode)
        )


def _from_mlx(directory: Path, spec: ModelSpec) -> Model:
    stored = StoredWeights(directory, spec)
    return _assembled(spec, stored.arrays, stored.weight_formats)


def _arrays(directory: Path) -> dict[str, mx.array]:
    weights: dict[str, mx.array] = {}
    for path in weight_files(directory):
        try:
            loaded = cast("dict[str, mx.array]", mx.load(str(path)))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: MLX cannot read it ({error})") from error
        weights |= {name.removeprefix(PREFIX): array for name, array in loaded.items()}
    return {name: array for name, array in weights.items() if not name.startswith(HEAD)}


def _stored_format(
    directory: Path, weights: Mapping[str, mx.array], path: str, shape: tuple[int, int], plan: QuantizationPlan
) -> WeightFormat | None:
    """Return the weight format of a stored matrix: bits and group size from the tensor shapes, the mode from the plan.

    Mixed-precision repositories do not always list every layer, but the shapes determine bits and group size.
    """
    if f"{path}.scales" not in weights:
        return None
    named = plan.weight_format(path) or plan.default
    codes, scales = weights.get(f"{path}.weight"), weights[f"{path}.scales"]
    n_rows, n_columns = shape
    if codes is None or codes.dtype != mx.uint32 or codes.ndim != 2 or scales.ndim != 2 or not scales.shape[1]:
        raise CheckpointError(f"{directory}: tensor {path}.weight is not packed codes, although {path}.scales exists")
    bits, group_size = codes.shape[1] * _WORD_BITS // n_columns, n_columns // scales.shape[1]
    if (n_rows, n_rows) != (codes.shape[0], scales.shape[0]) or bits * n_columns != codes.shape[1] * _WORD_BITS:
        raise CheckpointError(
            f"{directory}: tensor {path}.weight has shape {list(codes.shape)}, which is not a packing of {list(shape)}"
        )
    return WeightFormat(bits, group_size, named.mode if named else "affine")


def _require_match(
    directory: Path, spec: ModelSpec, weights: Mapping[str, mx.array], weight_formats: Mapping[str, WeightFormat | None]
) -> None:
    """Raise CheckpointError for a tensor that is missing, unknown, wrongly shaped or not finite."""
    expected = dict(spec.tensor_shapes())
    names = set(expected)
    for path, weight_format in weight_formats.items():
        if weight_format:
            del expected[f"{path}.weight"]
            names |= {f"{path}.scales"} | ({f"{path}.biases"} if weight_format.mode == "affine" else set())
    if missing := sorted(names - set(weights)):
        raise CheckpointError(f"{directory}: tensor {missing[0]} is missing ({len(missing)} of {len(names)} missing)")
    if extra := sorted(set(weights) - names):
        raise CheckpointError(f"{directory}: tensor {extra[0]} is not part of this model ({len(extra)} unknown)")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(
                f"{directory}: tensor {name} has shape {list(weights[name].shape)}, config.json implies {list(shape)}"
            )
    for name, array in weights.items():
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            raise CheckpointError(f"{directory}: tensor {name} contains NaN or infinity; download the file again")


def _assembled(
    spec: ModelSpec, weights: Mapping[str, mx.array], weight_formats: Mapping[str, WeightFormat | None]
) -> Model:
    """Return the model with these weights. `weight_formats` gives the weight formats of the quantized matrices."""
    model = Model(ModelArgs(spec))

    def weight_format_of(path: str, module: nn.Module) -> bool | dict[str, Any]:
        weight_format = weight_formats.get(path.removeprefix(PREFIX))
        return weight_format.as_config() if weight_format else False

    if any(weight_formats.values()):
        nn.quantize(model, class_predicate=weight_format_of)
    model.load_weights(list(model.sanitize(weights).items()), strict=True)
    model.eval()
    mx.eval(model.parameters())
    return model


def _config(directory: Path) -> dict[str, Any]:
    """Return the parsed config.json, {} if it is invalid; `ModelSpec.from_directory` reports errors in it."""
    try:
        config = json.loads((directory / layout.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def n_bytes(model: Model) -> int:
    """Return the memory used by the weights of a model, in bytes."""
    parameters = cast("list[tuple[str, mx.array]]", tree_flatten(model.parameters()))
    return sum(array.nbytes for _, array in parameters)


def as_numpy(states: mx.array) -> np.ndarray:
    """Return an array of any float type as a float32 NumPy array."""
    return np.array(states.astype(mx.float32))
