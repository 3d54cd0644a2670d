"""Convert a checkpoint to a GGUF file of llama.cpp's architecture qwen3, without causal mask and with mean pooling.

llama.cpp is not needed to convert. The states that are compared with the reference are computed in NumPy from the
weights as they are stored; llama.cpp also rounds the activations of quantized formats.
"""

import warnings
from collections.abc import Iterator, Mapping

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, PoolingType
from gguf.quants import dequantize, quantize

from pplx_convert.conversion import Job, Written
from pplx_convert.gguf.tokenizer import IDS_ONLY, write_tokenizer
from pplx_edge import layout
from pplx_edge.models.qwen3_numpy import block, rms_norm
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.checkpoint import Checkpoint

_TYPES = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
_TABLE_TYPES = {"q4_0": GGMLQuantizationType.Q8_0}  # the table is a lookup: 4 bits save little and cost much
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
    checkpoint, spec = job.checkpoint, job.checkpoint.spec
    name = job.artifact_format.removeprefix("gguf-")
    kind, file_type = _TYPES[name]
    table_kind = _TABLE_TYPES.get(name, kind)
    writer = GGUFWriter(job.directory / layout.GGUF_MODEL, "qwen3")
    _write_sizes(writer, spec)
    writer.add_file_type(file_type)
    tokenizer = write_tokenizer(writer, checkpoint.directory, spec)
    if tokenizer == IDS_ONLY:
        warnings.warn(
            f"{checkpoint.directory.name}: llama.cpp has no tokenizer that gives this model's ids, so the GGUF file "
            "takes ids only; pplx-edge tokenizes for it, Ollama and LM Studio cannot",
            stacklevel=3,
        )
    table = np.concatenate([_stored(rows, table_kind) for rows in checkpoint.row_blocks("embed_tokens.weight")])
    _add(writer, "token_embd.weight", table, table_kind)
    for index in range(spec.n_layers):
        for tensor, values in checkpoint.layer(index).items():
            _add(writer, f"blk.{index}.{_LAYER_NAMES[tensor]}", _stored(values, kind), kind)
        job.step()
    _add(writer, "output_norm.weight", checkpoint.read("norm.weight"), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    states = _states(checkpoint, table, table_kind, kind, [row.ids for row in job.rows])
    return Written(states=states, weights={"projections": name, "tokenizer": tokenizer, "computed_by": "NumPy"})


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


def _stored(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Return the bytes in which a matrix is stored; norms stay float32."""
    return quantize(values, kind) if values.ndim > 1 else values


def _add(writer: GGUFWriter, name: str, values: np.ndarray, kind: GGMLQuantizationType) -> None:
    if values.ndim == 1:
        writer.add_tensor(name, np.array(values, np.float32))
    else:
        writer.add_tensor(name, values, raw_dtype=kind)


def _states(
    checkpoint: Checkpoint,
    table: np.ndarray,
    table_kind: GGMLQuantizationType,
    kind: GGMLQuantizationType,
    rows: list[np.ndarray],
) -> Iterator[list[np.ndarray]]:
    """Yield the states `[T, D]` of every row after the embedding, after each layer and after the final norm."""
    spec = checkpoint.spec
    states = [dequantize(table[ids], table_kind).astype(np.float32) for ids in rows]
    yield states
    for index in range(spec.n_layers):
        weights = _rounded(checkpoint.layer(index), kind)
        states = [block(x, weights, spec) for x in states]
        yield states
    norm = checkpoint.read("norm.weight")
    yield [rms_norm(x, norm, spec.rms_norm_eps) for x in states]


def _rounded(weights: Mapping[str, np.ndarray], kind: GGMLQuantizationType) -> dict[str, np.ndarray]:
    return {
        name: dequantize(quantize(values, kind), kind).astype(np.float32) if values.ndim > 1 else values
        for name, values in weights.items()
    }
