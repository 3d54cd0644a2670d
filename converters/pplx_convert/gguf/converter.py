"""Convert a checkpoint to a GGUF file of llama.cpp's architecture qwen3, without causal mask and with mean pooling.

llama.cpp is needed only for `gguf-q4_k`, whose blocks it rounds itself. The states that are compared with the reference
are computed in NumPy from the weights in the file; llama.cpp also rounds the activations of quantized formats.
"""

import ctypes
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, PoolingType
from gguf.quants import dequantize, quantize

from pplx_convert.conversion import Job, Written
from pplx_convert.gguf.tokenizer import IDS_ONLY, write_tokenizer
from pplx_edge import layout
from pplx_edge.errors import MissingExtra, ModelError
from pplx_edge.models.qwen3_numpy import block, rms_norm
from pplx_edge.spec import ModelSpec

_TYPES = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
_FLOAT32, _Q4_K = (GGMLQuantizationType.F32, LlamaFileType.ALL_F32), "q4_k"
_TABLE_TYPES = {"q4_0": GGMLQuantizationType.Q8_0}  # the table is a lookup: 4 bits save little and cost much
# The largest weight that a type can store: float16's largest number, or that many steps of a float16 scale.
_LARGEST = {
    GGMLQuantizationType.F32: np.inf,
    GGMLQuantizationType.F16: 65504,
    GGMLQuantizationType.Q8_0: 127 * 65504,
    GGMLQuantizationType.Q4_0: 8 * 65504,
}
_LAYER_NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def write(job: Job) -> Written:
    """Write the file and return the result. Warns if llama.cpp cannot tokenize text for this model."""
    job.options.require_only(job.artifact_format)
    name, path = job.artifact_format.removeprefix("gguf-"), job.directory / layout.GGUF_MODEL
    if name == _Q4_K:
        plain = path.with_suffix(".f32")
        tokenizer = _write_file(job, plain, *_FLOAT32)
        _quantize_with_llama_cpp(plain, path)
        plain.unlink()
    else:
        tokenizer = _write_file(job, path, *_TYPES[name], _TABLE_TYPES.get(name))
    if tokenizer == IDS_ONLY:
        warnings.warn(
            f"{job.checkpoint.directory.name}: llama.cpp has no tokenizer that gives this model's ids, so the GGUF "
            "file takes ids only; pplx-edge tokenizes for it, Ollama and LM Studio cannot",
            stacklevel=3,
        )
    states = _states(path, job.checkpoint.spec, [row.ids for row in job.rows])
    return Written(states=states, weights={"projections": name, "tokenizer": tokenizer, "computed_by": "NumPy"})


def _write_file(
    job: Job,
    path: Path,
    kind: GGMLQuantizationType,
    file_type: LlamaFileType,
    table_kind: GGMLQuantizationType | None = None,
) -> str:
    """Write a file with weights of one type, and the embedding table of another, and return what it takes.

    A matrix with weights that are too large for its type is stored in float32.
    """
    checkpoint, spec, table_name = job.checkpoint, job.checkpoint.spec, "embed_tokens.weight"
    table_peak = max(float(np.abs(rows).max()) for rows in checkpoint.row_blocks(table_name))
    table_kind = _fitting(table_peak, table_kind or kind)
    writer = GGUFWriter(path, "qwen3")
    _write_sizes(writer, spec)
    writer.add_file_type(file_type)
    tokenizer = write_tokenizer(writer, checkpoint.directory, spec)
    table = np.concatenate([_stored(rows, table_kind) for rows in checkpoint.row_blocks(table_name)])
    writer.add_tensor("token_embd.weight", table, raw_dtype=table_kind)
    for index in range(spec.n_layers):
        for tensor, values in checkpoint.layer(index).items():
            name = f"blk.{index}.{_LAYER_NAMES[tensor]}"
            if values.ndim > 1:
                stored_as = _fitting(float(np.abs(values).max()), kind)
                writer.add_tensor(name, _stored(values, stored_as), raw_dtype=stored_as)
            else:
                writer.add_tensor(name, np.array(values, np.float32))
        job.step()
    writer.add_tensor("output_norm.weight", np.array(checkpoint.read("norm.weight"), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tokenizer


def _quantize_with_llama_cpp(source: Path, target: Path) -> None:
    """Write the file of float32 weights in the mixture of block types that llama.cpp calls Q4_K_M."""
    try:
        import llama_cpp.llama_cpp as llama
    except ImportError as error:
        raise MissingExtra(
            f"the format gguf-{_Q4_K}", "gguf", "is rounded by llama.cpp and needs llama-cpp-python"
        ) from error
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_K_M
    if status := llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)):
        raise ModelError(f"{source}: llama.cpp could not quantize it (status {status})")


def _write_sizes(writer: GGUFWriter, spec: ModelSpec) -> None:
    writer.add_block_count(spec.n_layers)
    writer.add_context_length(spec.max_tokens)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.n_heads)
    writer.add_head_count_kv(spec.n_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.rms_norm_eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.MEAN)


def _fitting(peak: float, kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """Return the type if it can store weights of this magnitude, else float32."""
    return kind if peak <= _LARGEST[kind] else GGMLQuantizationType.F32


def _stored(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Return the bytes in which a matrix is stored."""
    return quantize(np.ascontiguousarray(values, np.float32), kind)


def _states(path: Path, spec: ModelSpec, rows: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield the states `[T, D]` of every row after the embedding, after each layer and after the final norm."""
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}

    def read(name: str, ids: np.ndarray | slice = slice(None)) -> np.ndarray:
        return dequantize(tensors[name].data[ids], tensors[name].tensor_type).astype(np.float32)

    states = [read("token_embd.weight", ids) for ids in rows]
    yield states
    for index in range(spec.n_layers):
        weights = {ours: read(f"blk.{index}.{name}") for ours, name in _LAYER_NAMES.items()}
        states = [block(x, weights, spec) for x in states]
        yield states
    norm = read("output_norm.weight")
    yield [rms_norm(x, norm, spec.rms_norm_eps) for x in states]
