"""Convert a checkpoint to the layout of MLX tools: safetensors with packed weights, described in config.json.

Weights are read, quantized from float32 and written in blocks of rows, so a large embedding table is never entirely in
memory. The result can be opened by mlx-lm, mlx-embeddings and the MLX session of this project.
"""

import fnmatch
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from pplx_convert.conversion import Job, Written
from pplx_convert.mlx.plan import plan_with_default, size_limited_plan
from pplx_edge import layout
from pplx_edge.errors import InputError
from pplx_edge.models.mlx_quantization import (
    CONFIG_KEYS,
    WEIGHT_FORMATS,
    QuantizationPlan,
    WeightFormat,
    fits,
    quantized,
    weight_format_named,
)
from pplx_edge.models.mlx_weights import StoredWeights, as_numpy, matrices, open_model, uniform_plan
from pplx_edge.models.qwen3_mlx import PREFIX, Rows, is_stream_norm
from pplx_edge.models.qwen3_numpy import block, rms_norm
from pplx_edge.spec import DIVIDED_MODEL_TYPE, DIVISOR_KEY, ModelSpec
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_edge.weights.rounding import residual_share
from pplx_edge.weights.safetensors import SafetensorsWriter, n_bytes

FLOAT16 = "mlx-fp16"
MIXED = "mlx-mixed"
SHARD_BYTES = 5_000_000_000
_MOST_PRODUCTS = 5e10  # parameters times tokens, up to which MLX runs the probe rows on a CPU
_TYPE_NAMES = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32"}
_METADATA = {"format": "mlx"}
_POOLING_MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
Tensor = tuple[str, tuple[int, ...]]


def write(job: Job) -> Written:
    """Write weights, index and config. In float16, the residual stream is divided as for Core ML."""
    if job.artifact_format == FLOAT16:
        job = replace(job, checkpoint=job.checkpoint.divided())
    spec, residual = job.checkpoint.spec, job.checkpoint.residual
    plan = _requested_plan(job)
    floats = mx.float16 if job.artifact_format == FLOAT16 else mx.bfloat16
    write_weights(job.checkpoint, plan, job.directory, job.step, floats)
    _write_config(job.directory, plan, residual if job.artifact_format == FLOAT16 else None)
    _write_pooling(job.directory, spec)
    in_mlx = _runs_in_mlx(job)
    states = _row_states(job) if in_mlx else _decoded_states(job)
    checked = {"checked": "run by MLX" if in_mlx else "weights decoded, run by NumPy in float32"}
    described = dict(_described(plan, spec, job.artifact_format)) | checked
    return Written(states=states, weights=described, residual=residual)


def write_weights(
    checkpoint: Checkpoint,
    plan: QuantizationPlan,
    directory: Path,
    step: Callable[[], None],
    floats: mx.Dtype = mx.bfloat16,
) -> None:
    """Write the weights to one file, or to shards of at most SHARD_BYTES with an index.

    `floats` is the type of what is not quantized; in float16, norms of the residual stream are float32. Calls `step` after each layer.
    """
    shards = _shards(checkpoint.spec, plan, SHARD_BYTES, floats)
    single = len(shards) == 1
    names = [layout.WEIGHTS_SHARD.format(i, len(shards)) for i in range(1, len(shards) + 1)]
    names = [layout.WEIGHTS] if single else names
    for file_name, shard in zip(names, shards, strict=True):
        tensors = {PREFIX + name: tensor for parts in shard.values() for name, tensor in parts.items()}
        with SafetensorsWriter(directory / file_name, tensors, _METADATA) as file:
            for name in shard:
                for part, values in _parts(checkpoint, plan, name, floats):
                    file.append(PREFIX + part, values)
                if name.endswith("mlp.down_proj.weight"):  # the last tensor of a layer
                    step()
    if not single:
        _write_index(directory, names, shards)


def _requested_plan(job: Job) -> QuantizationPlan:
    """Return the plan for all matrices, from the format and the overrides in the options."""
    spec, options = job.checkpoint.spec, job.options
    if job.artifact_format == MIXED:
        options.require_only(job.artifact_format, "overrides", "max_mb")
        plan = size_limited_plan(job.checkpoint, job.rows, options.max_mb)
    else:
        options.require_only(job.artifact_format, *([] if job.artifact_format == FLOAT16 else ["overrides"]))
        name = job.artifact_format.removeprefix("mlx-")
        plan = uniform_plan(spec, WEIGHT_FORMATS[name]) if name in WEIGHT_FORMATS else QuantizationPlan()
    return plan_with_default(
        {path: plan.weight_format(path) for path in matrices(spec)} | _named(spec, options.overrides)
    )


def _named(spec: ModelSpec, overrides: Mapping[str, str]) -> dict[str, WeightFormat | None]:
    """Return the weight formats set by overrides, by path.

    Raises InputError for a pattern that matches no matrix, or a weight format that does not fit one.
    """
    found: dict[str, WeightFormat | None] = {}
    for pattern, name in overrides.items():
        weight_format = None if name == "bf16" else weight_format_named(name)
        paths = fnmatch.filter(matrices(spec), pattern)
        if not paths:
            raise InputError(f"override {pattern!r}: matches no matrix; an example is {list(matrices(spec))[1]}")
        for path in paths:
            if weight_format and not fits(weight_format, matrices(spec)[path][1]):
                raise InputError(
                    f"override {pattern!r}: rows of {path} have {matrices(spec)[path][1]} weights, which cannot be "
                    f"divided into groups of {weight_format.group_size}"
                )
            found[path] = weight_format
    return found


def _shards(
    spec: ModelSpec, plan: QuantizationPlan, limit: int, floats: mx.Dtype
) -> list[dict[str, dict[str, Tensor]]]:
    """Return, for each file, the checkpoint tensors in order with the tensors that each is stored as."""
    shards: list[dict[str, dict[str, Tensor]]] = [{}]
    size = 0
    for name, shape in spec.tensor_shapes().items():
        parts = _stored(name, shape, plan, floats)
        added = sum(n_bytes(*tensor) for tensor in parts.values())
        if shards[-1] and size + added > limit:
            shards.append({})
            size = 0
        shards[-1][name] = parts
        size += added
    return shards


def _float_type(name: str, floats: mx.Dtype) -> mx.Dtype:
    """Return the type of a tensor that is not quantized. Folded norms may exceed float16, but not bfloat16."""
    return mx.float32 if floats == mx.float16 and is_stream_norm(name) else floats


def _stored(name: str, shape: tuple[int, ...], plan: QuantizationPlan, floats: mx.Dtype) -> dict[str, Tensor]:
    """Return the names, types and shapes of the tensors that a checkpoint tensor is stored as."""
    path = name.removesuffix(".weight")
    weight_format = plan.weight_format(path) if len(shape) == 2 else None
    if weight_format is None:
        return {name: (_TYPE_NAMES[_float_type(name, floats)], shape)}
    n_rows, n_columns = shape
    groups = (n_rows, n_columns // weight_format.group_size)
    codes = {name: ("U32", (n_rows, n_columns * weight_format.bits // 32))}
    if weight_format.mode != "affine":
        return codes | {f"{path}.scales": ("U8", groups)}
    return codes | {f"{path}.scales": ("BF16", groups), f"{path}.biases": ("BF16", groups)}


def _parts(
    checkpoint: Checkpoint, plan: QuantizationPlan, name: str, floats: mx.Dtype
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield `(name, values)` for the tensors that a checkpoint tensor is stored as, one block of rows at a time."""
    shape = checkpoint.spec.tensor_shapes()[name]
    path = name.removesuffix(".weight")
    if len(shape) == 1:
        yield name, _raw(mx.array(checkpoint.read(name)).astype(_float_type(name, floats)))
        return
    weight_format = plan.weight_format(path)
    for rows in checkpoint.row_blocks(name):
        values = mx.array(rows)
        parts = quantized(values, weight_format) if weight_format else {"weight": values.astype(floats)}
        for part, array in parts.items():
            yield f"{path}.{part}", _raw(array)


def _raw(array: mx.array) -> np.ndarray:
    """Return an array as NumPy, with bfloat16 as uint16 because NumPy has no bfloat16."""
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


def _write_index(directory: Path, names: list[str], shards: list[dict[str, dict[str, Tensor]]]) -> None:
    total, weight_map = 0, {}
    for file_name, shard in zip(names, shards, strict=True):
        for parts in shard.values():
            total += sum(n_bytes(*tensor) for tensor in parts.values())
            weight_map |= {PREFIX + name: file_name for name in parts}
    _write_json(directory / layout.WEIGHTS_INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_config(directory: Path, plan: QuantizationPlan, residual: int | None) -> None:
    """Add the plan to config.json, under both names that MLX tools read.

    `residual` is the exponent of the residual divisor for float16; then the model type becomes one that other tools
    refuse, because they would use the wrong eps and keep the stream in float16.
    """
    path = directory / layout.CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in CONFIG_KEYS:
        config.pop(key, None)
        if block := plan.as_config():
            config[key] = block
    config["torch_dtype"] = "bfloat16" if residual is None else "float16"
    if residual is not None:
        config |= {"model_type": DIVIDED_MODEL_TYPE, DIVISOR_KEY: 2**residual}
    config.pop("dtype", None)
    _write_json(path, config)


def _write_pooling(directory: Path, spec: ModelSpec) -> None:
    """Write the mean pooling settings in the form that sentence-transformers and mlx-embeddings read."""
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": layout.POOLING, "type": "sentence_transformers.models.Pooling"},
    ]
    _write_json(directory / layout.MODULES, modules)
    (directory / layout.POOLING).mkdir()
    pooling = {f"pooling_mode_{mode}": mode == "mean_tokens" for mode in _POOLING_MODES}
    pooling |= {"word_embedding_dimension": spec.dim, "include_prompt": True}
    _write_json(directory / layout.POOLING_CONFIG, pooling)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _described(plan: QuantizationPlan, spec: ModelSpec, artifact_format: str) -> Mapping[str, Any]:
    """Return the number of matrices in each weight format, for the manifest."""
    kept: dict[str, int] = {}
    for path in matrices(spec):
        name = "fp16" if artifact_format == FLOAT16 else _name_of(plan.weight_format(path))
        kept[name] = kept.get(name, 0) + 1
    return {"matrices": kept}


def _name_of(weight_format: WeightFormat | None) -> str:
    if weight_format is None:
        return "bf16"
    return next(
        (name for name, known in WEIGHT_FORMATS.items() if known == weight_format),
        f"{weight_format.mode} {weight_format.bits}",
    )


def _runs_in_mlx(job: Job) -> bool:
    """Return whether MLX runs the probe rows. On a CPU, its kernels would take an hour for a released model."""
    products = job.checkpoint.spec.n_parameters * sum(len(row) for row in job.rows)
    return mx.metal.is_available() or products < _MOST_PRODUCTS


def _row_states(job: Job) -> Iterator[list[np.ndarray]]:
    """Yield the states of the probe rows, computed by MLX from the written files, one row at a time."""
    encoder = open_model(job.directory).model
    passes = [encoder.states(mx.array(row.ids), Rows(1, len(row.ids))) for row in job.rows]
    for _ in range(job.checkpoint.spec.n_layers + 2):
        yield [as_numpy(next(states)) for states in passes]


def _decoded_states(job: Job) -> Iterator[list[np.ndarray]]:
    """Yield the states of the probe rows, computed by NumPy in float32 from the decoded weights, undivided."""
    spec, written = job.checkpoint.spec, StoredWeights(job.directory, job.checkpoint.spec)
    exponent = ModelSpec.from_directory(job.directory).residual_divisor.bit_length() - 1
    shares = {name: residual_share(name, exponent) for name in spec.tensor_shapes()}
    states = [np.ldexp(written.rows("embed_tokens", row.ids), shares["embed_tokens.weight"]) for row in job.rows]
    yield states
    for layer in range(spec.n_layers):
        names = {name: f"layers.{layer}.{name}" for name in spec.layer_shapes()}
        weights = {name: np.ldexp(written.read(full), shares[full]) for name, full in names.items()}
        states = [block(x, weights, spec) for x in states]
        yield states
    norm = written.read("norm.weight")
    yield [rms_norm(x, norm, spec.rms_norm_eps) for x in states]
