"""Run GGUF files with llama.cpp on the CPU.

Ids go in and the states of all tokens come out; pooling is ours, so chunks work as with other backends. A context is
made for the longest batch so far. llama.cpp is not safe to call from several threads, so calls wait for each other.
"""

import ctypes
import threading
from pathlib import Path
from typing import Any

import numpy as np

from pplx_edge import layout
from pplx_edge.errors import MissingExtra, ModelError
from pplx_edge.registry import GGUF
from pplx_edge.spec import ModelSpec
from pplx_edge.types import SESSION_DEFAULTS, BatchPolicy, SessionOptions, TokenBatch
from pplx_edge.vectors.pooling import packed_span_means
from pplx_edge.weights.artifact import Artifact

try:
    import llama_cpp.llama_cpp as llama
except ImportError as error:
    raise MissingExtra("the gguf backend", "gguf", "needs llama-cpp-python") from error

_CONTEXT_STEP = 256  # llama.cpp rounds the size of a context up to this


def open_session(directory: Path, options: SessionOptions = SESSION_DEFAULTS) -> "GgufSession":
    """Open the model in an artifact. Raises ModelError if llama.cpp cannot load it."""
    path = Artifact.open(directory).path(layout.GGUF_MODEL)
    return GgufSession(path, ModelSpec.from_directory(directory), options.threads)


@llama.llama_log_callback
def _quiet(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """Drop what llama.cpp logs."""


class GgufSession:
    """A session for a GGUF file, with one context at a time."""

    backend, device = GGUF.name, "cpu"
    policy = BatchPolicy(max_tokens=512)

    def __init__(self, path: Path, spec: ModelSpec, threads: int | None = None):
        self.spec, self._threads, self._lock = spec, threads, threading.Lock()
        llama.llama_log_set(_quiet, ctypes.c_void_p())
        llama.llama_backend_init()
        parameters = llama.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model: Any = llama.llama_model_load_from_file(str(path).encode(), parameters)
        if not self._model:
            raise ModelError(f"{path}: llama.cpp cannot load it")
        self._context: Any = None
        self._n_context = 0

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            llama.llama_free(self._context)
        if getattr(self, "_model", None):
            llama.llama_model_free(self._model)

    def packed_states(self, batch: TokenBatch) -> np.ndarray:
        """Return the states of the real tokens of all rows, concatenated: float32 `[S, D]`."""
        rows = [ids[mask] for ids, mask in zip(batch.input_ids, batch.attention_mask.astype(bool), strict=True)]
        with self._lock:
            self._require_context(max(len(row) for row in rows))
            return np.concatenate([self._decode(row) for row in rows])

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Return the final hidden states, float32 `[B, T, D]`, zeros at padding."""
        states = np.zeros((*batch.input_ids.shape, self.spec.dim), np.float32)
        states[batch.attention_mask.astype(bool)] = self.packed_states(batch)
        return states

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Return the mean state of each span, float32 `[N, D]`; an empty span gives zeros."""
        starts = np.concatenate([[0], np.cumsum(batch.lengths)])
        return packed_span_means(self.packed_states(batch), starts, batch.spans)

    def _require_context(self, n_tokens: int) -> None:
        """Make a context that takes a row of `n_tokens`, unless there is one."""
        if n_tokens <= self._n_context:
            return
        if self._context:
            llama.llama_free(self._context)
        n_context = -(-n_tokens // _CONTEXT_STEP) * _CONTEXT_STEP
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = n_context
        parameters.n_seq_max = 1
        if self._threads:
            parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
        parameters.attention_type = llama.LLAMA_ATTENTION_TYPE_NON_CAUSAL
        parameters.embeddings = True
        self._context, self._n_context = llama.llama_init_from_model(self._model, parameters), n_context
        if not self._context:
            self._n_context = 0
            raise ModelError(f"llama.cpp cannot make a context of {n_context:,} tokens")

    def _decode(self, ids: np.ndarray) -> np.ndarray:
        """Return the states of one row, `[T]` to `[T, D]`."""
        n_tokens = len(ids)
        if not n_tokens:
            return np.empty((0, self.spec.dim), np.float32)
        llama.llama_memory_clear(llama.llama_get_memory(self._context), False)
        batch = llama.llama_batch_init(n_tokens, 0, 1)
        try:
            batch.n_tokens = n_tokens
            for i, token in enumerate(ids.tolist()):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
            if status := llama.llama_decode(self._context, batch):
                raise ModelError(f"llama.cpp failed on {n_tokens:,} tokens (status {status})")
        finally:
            llama.llama_batch_free(batch)
        states = llama.llama_get_embeddings(self._context)
        return np.ctypeslib.as_array(states, (n_tokens, self.spec.dim)).astype(np.float32, copy=True)
