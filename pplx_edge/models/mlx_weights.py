"""Weights into the MLX encoder: float checkpoints of any layout, quantised while they are read or not, and the
repositories that MLX tools write.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from pplx_edge.errors import CheckpointError, InputError
from pplx_edge.models.mlx_quantization import (
    SCHEMES,
    QuantizationPlan,
    Scheme,
    fits,
    quantized,
    scheme_named,
)
from pplx_edge.models.qwen3_mlx import HEAD, PREFIX, Model, ModelArgs
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.checkpoint import Checkpoint, weight_files

DTYPES = {"bf16": mx.bfloat16, "fp32": mx.float32}
_WORD_BITS = 32


def open_model(directory: Path, quantize: str | None = None) -> Model:
    """The encoder of a directory, its weights read and checked.

    `quantize` is what a float checkpoint becomes: a name of SCHEMES, or `bf16` (None) or `fp32`. Raises
    CheckpointError, UnsupportedModel, or InputError for a name that is unknown or for weights that are quantised
    already.
    """
    if not mx.metal.is_available():
        mx.disable_compile()  # a processor would run a C++ compiler for each new shape
    config = _config(directory)
    spec = ModelSpec.from_directory(directory)
    plan = QuantizationPlan.from_config(config, str(directory / "config.json"))
    if plan.default is None:
        return _from_floats(Checkpoint.open(directory, spec), quantize or "bf16")
    if quantize is not None:
        raise InputError(f"{directory}: its weights are quantised already; open it without quantize={quantize!r}")
    return _from_mlx(directory, spec)


def plan_for(spec: ModelSpec, scheme: Scheme) -> QuantizationPlan:
    """One scheme for every matrix whose rows divide into its groups; the others stay in floats."""
    left = {path: None for path, (_, n_columns) in matrices(spec).items() if not fits(scheme, n_columns)}
    return QuantizationPlan(scheme, left)


def matrices(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """Every matrix of the model by the path of its module, with its shape `[out, in]`."""
    shapes = spec.tensor_shapes().items()
    return {name.removesuffix(".weight"): (shape[0], shape[1]) for name, shape in shapes if len(shape) == 2}


def _from_floats(checkpoint: Checkpoint, quantize: str) -> Model:
    dtype = DTYPES.get(quantize)
    plan = QuantizationPlan() if dtype else plan_for(checkpoint.spec, scheme_named(quantize))
    weights: dict[str, mx.array] = {}
    for name in checkpoint.spec.tensor_shapes():
        path = name.removesuffix(".weight")
        scheme = plan.scheme(path) if path in matrices(checkpoint.spec) else None
        values = mx.array(checkpoint.read(name))
        parts = quantized(values, scheme) if scheme else {"weight": values.astype(dtype or mx.bfloat16)}
        mx.eval(*parts.values())  # now, so that the float32 of one tensor is gone before the next is read
        weights |= {f"{path}.{part}": array for part, array in parts.items()}
    return _assembled(checkpoint.spec, weights, {path: plan.scheme(path) for path in matrices(checkpoint.spec)})


class StoredWeights:
    """The tensors of a repository that MLX tools have written, mapped from its files and decoded one by one."""

    def __init__(self, directory: Path, spec: ModelSpec):
        """Raises CheckpointError for a file that MLX cannot read, or a tensor that is not as it should be."""
        plan = QuantizationPlan.from_config(_config(directory), str(directory / "config.json"))
        self.arrays = _arrays(directory)
        self.schemes = {
            path: _stored_scheme(directory, self.arrays, path, shape, plan) for path, shape in matrices(spec).items()
        }
        _require_match(directory, spec, self.arrays, self.schemes)

    def read(self, name: str) -> np.ndarray:
        """A tensor by its name in checkpoints, float32, as it is left by its quantisation."""
        return self._decoded(name.removesuffix(".weight"), slice(None))

    def rows(self, path: str, rows: np.ndarray) -> np.ndarray:
        """Rows `[R]` of a matrix: float32 `[R, columns]`."""
        return self._decoded(path, mx.array(rows))

    def _decoded(self, path: str, rows: mx.array | slice) -> np.ndarray:
        weight, scheme = self.arrays[f"{path}.weight"][rows], self.schemes.get(path)
        if scheme is None:
            return as_numpy(weight)
        scales, biases = self.arrays[f"{path}.scales"][rows], None
        if scheme.mode == "affine":  # float32 first, or products are rounded to bfloat16
            scales = scales.astype(mx.float32)
            biases = self.arrays[f"{path}.biases"][rows].astype(mx.float32)
        return as_numpy(mx.dequantize(weight, scales, biases, scheme.group_size, scheme.bits, mode=scheme.mode))


def _from_mlx(directory: Path, spec: ModelSpec) -> Model:
    stored = StoredWeights(directory, spec)
    return _assembled(spec, stored.arrays, stored.schemes)


def _arrays(directory: Path) -> dict[str, mx.array]:
    weights: dict[str, mx.array] = {}
    for path in weight_files(directory):
        try:
            loaded = cast("dict[str, mx.array]", mx.load(str(path)))
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path}: MLX cannot read it ({error})") from error
        weights |= {name.removeprefix(PREFIX): array for name, array in loaded.items()}
    return {name: array for name, array in weights.items() if not name.startswith(HEAD)}


def _stored_scheme(
    directory: Path, weights: Mapping[str, mx.array], path: str, shape: tuple[int, int], plan: QuantizationPlan
) -> Scheme | None:
    """How a matrix is kept: bits and group size by the shapes that are there, the mode by the plan.

    Mixed repositories do not always name each of their layers, but bits and groups follow from the sizes.
    """
    if f"{path}.scales" not in weights:
        return None
    named = plan.scheme(path) or plan.default
    codes, scales = weights.get(f"{path}.weight"), weights[f"{path}.scales"]
    n_rows, n_columns = shape
    if codes is None or codes.dtype != mx.uint32 or codes.ndim != 2 or scales.ndim != 2 or not scales.shape[1]:
        raise CheckpointError(f"{directory}: tensor {path}.weight is not packed codes, though {path}.scales is there")
    bits, group_size = codes.shape[1] * _WORD_BITS // n_columns, n_columns // scales.shape[1]
    if (n_rows, n_rows) != (codes.shape[0], scales.shape[0]) or bits * n_columns != codes.shape[1] * _WORD_BITS:
        raise CheckpointError(
            f"{directory}: tensor {path}.weight has shape {list(codes.shape)}, which is no packing of {list(shape)}"
        )
    return Scheme(bits, group_size, named.mode if named else "affine")


def _require_match(
    directory: Path, spec: ModelSpec, weights: Mapping[str, mx.array], schemes: Mapping[str, Scheme | None]
) -> None:
    """Raises CheckpointError for a tensor that is missing, unknown, misshapen or not finite."""
    expected = dict(spec.tensor_shapes())
    names = set(expected)
    for path, scheme in schemes.items():
        if scheme:
            del expected[f"{path}.weight"]
            names |= {f"{path}.scales"} | ({f"{path}.biases"} if scheme.mode == "affine" else set())
    if missing := sorted(names - set(weights)):
        raise CheckpointError(f"{directory}: tensor {missing[0]} is missing ({len(missing)} of {len(names)} are)")
    if extra := sorted(set(weights) - names):
        raise CheckpointError(f"{directory}: tensor {extra[0]} is not part of this model ({len(extra)} unknown)")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(
                f"{directory}: tensor {name} has shape {list(weights[name].shape)}, config.json implies {list(shape)}"
            )
    for name, array in weights.items():
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
            raise CheckpointError(f"{directory}: tensor {name} holds NaN or infinity; fetch the file again")


def _assembled(spec: ModelSpec, weights: Mapping[str, mx.array], schemes: Mapping[str, Scheme | None]) -> Model:
    """The model with these weights. `schemes` names the matrices that are quantised."""
    model = Model(ModelArgs(spec))

    def scheme_of(path: str, module: nn.Module) -> bool | dict[str, Any]:
        scheme = schemes.get(path.removeprefix(PREFIX))
        return scheme.as_config() if scheme else False

    if any(schemes.values()):
        nn.quantize(model, class_predicate=scheme_of)
    model.load_weights(list(model.sanitize(weights).items()), strict=True)
    model.eval()
    mx.eval(model.parameters())
    return model


def _config(directory: Path) -> dict[str, Any]:
    """config.json as it is; `ModelSpec.from_directory` says what is wrong with it."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def n_bytes(model: Model) -> int:
    """What the weights of a model take in memory."""
    parameters = cast("list[tuple[str, mx.array]]", tree_flatten(model.parameters()))
    return sum(array.nbytes for _, array in parameters)


def as_numpy(states: mx.array) -> np.ndarray:
    """An array of any float type as float32 NumPy."""
    return np.array(states.astype(mx.float32))


QUANTIZE_NAMES = (*DTYPES, *SCHEMES)
