"""llama.cpp, Q8_0: arch qwen3, no causal mask, mean pooling inside, flash attention where it chooses it.

Token embeddings are looked up here and handed over as vectors. The vocabulary in the file then needs only one block of
rows, which spares llama.cpp the language model's head: its qwen3 graph computes that for every token even when only
embeddings are asked for, and it would cost a third of the time.
"""

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as llama
import numpy as np

from pplx_bench.speed.peers import Encode
from pplx_bench.speed.peers.batches import BATCH
from pplx_edge.weights.checkpoint import Checkpoint

_WEIGHTS, _EMBEDDINGS = "model.gguf", "embeddings.npy"
_VOCABULARY_ROWS = 32
_CONTEXT_STEP = 256  # llama.cpp rounds the context up to this
_PACK_TOKENS = 512  # ragged rows that share one call
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


class LlamaPeer:
    """A loaded model, with one context at a time, made for the rows at hand."""

    def __init__(self, source: Path, threads: int):
        llama.llama_backend_init()
        parameters = llama.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model: Any = llama.llama_model_load_from_file(str(source / _WEIGHTS).encode(), parameters)
        if not self._model:
            raise RuntimeError(f"{source / _WEIGHTS}: llama.cpp could not load it")
        self._table = np.load(source / _EMBEDDINGS, mmap_mode="r")
        self._threads = threads
        self._context: Any = None
        self._context_key: tuple[int, ...] = ()

    def ways(self, rows: list[np.ndarray]) -> dict[str, Encode]:
        ways: dict[str, Encode] = {"row by row": self._row_by_row}
        if len({len(row) for row in rows}) == 1 and len(rows) > 1:
            ways[f"batches of {min(BATCH, len(rows))}"] = self._equal_batches
        elif len(rows) > 1:
            ways[f"packed to {_PACK_TOKENS} tokens"] = self._packed
        return ways

    def _row_by_row(self, rows: list[np.ndarray]) -> np.ndarray:
        self._require_context(max(len(row) for row in rows), 1, unified=True)
        return np.concatenate([self._decode([row]) for row in rows])

    def _equal_batches(self, rows: list[np.ndarray]) -> np.ndarray:
        n_rows = min(BATCH, len(rows))
        self._require_context(len(rows[0]), n_rows, unified=False)
        return np.concatenate([self._decode(rows[i : i + n_rows]) for i in range(0, len(rows), n_rows)])

    def _packed(self, rows: list[np.ndarray]) -> np.ndarray:
        packs = list(_packs([len(row) for row in rows]))
        most = 1 << (max(len(pack) for pack in packs) - 1).bit_length()  # it aborts where this does not divide n_ubatch
        self._require_context(max(_PACK_TOKENS, *(len(row) for row in rows)), most, unified=True)
        return np.concatenate([self._decode([rows[i] for i in pack]) for pack in packs])

    def _require_context(self, n_tokens: int, n_sequences: int, *, unified: bool) -> None:
        """A context for `n_tokens` a sequence, or in all when sequences share one cache."""
        per_sequence = -(-n_tokens // _CONTEXT_STEP) * _CONTEXT_STEP
        key = (per_sequence, n_sequences, unified)
        if key == self._context_key:
            return
        if self._context is not None:
            llama.llama_free(self._context)
        parameters = llama.llama_context_default_params()
        total = per_sequence if unified else per_sequence * n_sequences
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = total
        parameters.n_seq_max = n_sequences
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.pooling_type = llama.LLAMA_POOLING_TYPE_MEAN
        parameters.attention_type = llama.LLAMA_ATTENTION_TYPE_NON_CAUSAL
        parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_AUTO
        parameters.embeddings = True
        parameters.kv_unified = unified
        self._context = llama.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp could not make a context of {total} tokens")
        self._context_key = key

    def _decode(self, rows: list[np.ndarray]) -> np.ndarray:
        memory: Any = llama.llama_get_memory(self._context)
        llama.llama_memory_clear(memory, False)
        inputs = np.ascontiguousarray(self._table[np.concatenate(rows)], np.float32)  # [S, D]
        batch = _Batch(inputs, [len(row) for row in rows])
        status = llama.llama_decode(self._context, batch.struct)
        if status:
            raise RuntimeError(f"llama_decode returned {status} for {len(inputs)} tokens")
        width = inputs.shape[1]
        pooled = [llama.llama_get_embeddings_seq(self._context, i) for i in range(len(rows))]
        return np.stack([np.ctypeslib.as_array(pointer, (width,)).copy() for pointer in pooled])


class _Batch:
    """llama.cpp's batch over NumPy memory, which it keeps alive."""

    def __init__(self, inputs: np.ndarray, lengths: list[int]):
        n_tokens = len(inputs)
        self._inputs = inputs
        self._positions = np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])
        self._sequences = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        self._counts = np.ones(n_tokens, np.int32)
        self._wanted = np.ones(n_tokens, np.int8)
        addresses = self._sequences.ctypes.data + self._sequences.itemsize * np.arange(n_tokens, dtype=np.uint64)
        self._pointers = addresses.astype(np.uint64)
        self.struct = llama.llama_batch(
            n_tokens,
            None,
            _pointer(self._inputs, ctypes.c_float),
            _pointer(self._positions, ctypes.c_int32),
            _pointer(self._counts, ctypes.c_int32),
            ctypes.cast(self._pointers.ctypes.data, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            _pointer(self._wanted, ctypes.c_int8),
        )


def prepare(checkpoint: Path, directory: Path, settings: Mapping[str, Any]) -> None:
    """Writes the GGUF file and, beside it, the embedding table as float16."""
    from gguf import GGMLQuantizationType, GGUFWriter

    opened = Checkpoint.open(checkpoint)
    spec = opened.spec
    writer = GGUFWriter(directory / _WEIGHTS, "qwen3")
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
    writer.add_vocab_size(_VOCABULARY_ROWS)
    writer.add_tokenizer_model("none")
    writer.add_file_type(GGMLQuantizationType.Q8_0)
    for name, values in _tensors(opened):
        _add_tensor(writer, name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _write_embeddings(opened, directory / _EMBEDDINGS)


def open_model(source: Path, threads: int, settings: Mapping[str, Any]) -> LlamaPeer:
    """The GGUF file in llama.cpp."""
    return LlamaPeer(source, threads)


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    yield "token_embd.weight", checkpoint.read_block("embed_tokens.weight", 0, _VOCABULARY_ROWS)
    for layer in range(checkpoint.spec.n_layers):
        for name, values in checkpoint.layer(layer).items():
            yield f"blk.{layer}.{_LAYER_NAMES[name]}", values
    yield "output_norm.weight", checkpoint.read("norm.weight")


def _add_tensor(writer: Any, name: str, values: np.ndarray) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if values.ndim == 1:
        writer.add_tensor(name, np.array(values))
    else:
        writer.add_tensor(name, quantize(values, GGMLQuantizationType.Q8_0), raw_dtype=GGMLQuantizationType.Q8_0)


def _write_embeddings(checkpoint: Checkpoint, path: Path) -> None:
    shape = (checkpoint.spec.vocab_size, checkpoint.spec.hidden_size)
    table = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    for start in range(0, shape[0], 1 << 12):
        stop = min(start + (1 << 12), shape[0])
        table[start:stop] = checkpoint.read_block("embed_tokens.weight", start, stop)
    table.flush()


def _packs(lengths: list[int]) -> Iterator[list[int]]:
    """Consecutive rows that together stay within the tokens of one call."""
    pack: list[int] = []
    for i, length in enumerate(lengths):
        if pack and sum(lengths[j] for j in pack) + length > _PACK_TOKENS:
            yield pack
            pack = []
        pack.append(i)
    yield pack


def _pointer(array: np.ndarray, kind: Any) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(kind))
