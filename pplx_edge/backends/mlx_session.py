"""The MLX session: run models on the GPU of a Mac with Apple Silicon. The CPU also works, slowly, for parity tests.

All MLX calls run on one dedicated thread, because MLX keeps streams and compiled functions per thread. Rows are padded
to one of a few lengths and run in groups whose size is a power of two, so that shapes repeat: Metal reuses buffers only
for shapes it has seen before, and compiled functions are kept forever. Spans are pooled on the device, and only their
means `[N, D]` are copied to the host.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import numpy as np

from pplx_edge.errors import InputError
from pplx_edge.models.mlx_weights import as_numpy, n_bytes, open_model
from pplx_edge.models.qwen3_mlx import Model
from pplx_edge.spec import ModelSpec
from pplx_edge.types import SESSION_DEFAULTS, BatchPolicy, SessionOptions, TokenBatch

_LEAST_LENGTH = 16
_LENGTHS_AN_OCTAVE = 4  # at most a fifth of a row is padding, a tenth on average
_MAX_TOKENS = 8192  # per call; enough to keep a GPU busy
_MAX_ATTENTION = 1 << 24
_CACHE_BYTES = 256_000_000  # limit for freed buffers during a call; the cache is cleared between calls
_MEGABYTE = 1_000_000
T = TypeVar("T")


def open_session(directory: Path, options: SessionOptions = SESSION_DEFAULTS) -> "MlxSession":
    """Open the model in a directory: an artifact, a float checkpoint, or a repository written by MLX tools.

    `options.weights` is the format that the weights of a checkpoint get while they are read, and `options.memory_mb`
    limits the memory of all arrays of the process. Raises CheckpointError, UnsupportedModel, or InputError for invalid
    options.
    """
    return MlxSession(directory, ModelSpec.from_directory(directory), options)


class MlxSession:
    """A model on the default MLX device. Kernels depend on shapes, so the last digits may depend on the batch."""

    backend = "mlx"

    def __init__(self, directory: Path, spec: ModelSpec, options: SessionOptions = SESSION_DEFAULTS):
        self.spec = spec
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pplx-edge-mlx")
        self.model = self._on_worker(lambda: open_model(directory, options.weights))
        self.device = self._on_worker(_device)
        self.policy = BatchPolicy(max_tokens=_MAX_TOKENS, max_attention=_MAX_ATTENTION, padded=True)
        mx.set_cache_limit(_CACHE_BYTES)
        if options.memory_mb is not None:
            self.policy = self._within(options.memory_mb)
        self._forward = self._on_worker(lambda: _forward(self.model))

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Return the final hidden states, float32 `[B, T, D]`, zeros at padding."""
        return self._on_worker(lambda: self._token_states(batch))

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Return the mean state of each span, float32 `[N, D]`; an empty span gives zeros."""
        return self._on_worker(lambda: self._span_means(batch))

    def _on_worker(self, work: Callable[[], T]) -> T:
        return self._worker.submit(work).result()

    def _token_states(self, batch: TokenBatch) -> np.ndarray:
        found = np.zeros((*batch.input_ids.shape, self.spec.dim), np.float32)
        real = batch.attention_mask.astype(bool)
        for rows, states in self._passes(batch):
            host = as_numpy(states)
            for row, of_row in zip(rows, host, strict=True):
                found[row, real[row]] = of_row[: real[row].sum()]
        return found

    def _span_means(self, batch: TokenBatch) -> np.ndarray:
        means = np.zeros((len(batch.spans), self.spec.dim), np.float32)
        of_row = defaultdict(list)
        for i, span in enumerate(batch.spans):
            if span.n_tokens:
                of_row[span.row].append(i)
        for rows, states in self._passes(batch):
            width = states.shape[1]
            wanted = [(i, place * width) for place, row in enumerate(rows) for i in of_row[row]]
            starts = np.array([base + batch.spans[i].start for i, base in wanted], np.int32)
            counts = np.array([batch.spans[i].n_tokens for i, _ in wanted], np.int32)
            flat = states.reshape(-1, self.spec.dim)
            for picked, pooled in span_sums(flat, starts, counts):
                means[[wanted[j][0] for j in picked]] = as_numpy(pooled) / counts[picked, None].astype(np.float32)
        return means

    def _passes(self, batch: TokenBatch) -> Iterator[tuple[list[int], mx.array]]:
        """Yield groups of rows with their states `[b, T, D]`, padded on the right. Frees buffers between groups."""
        ids = [row[mask.astype(bool)] for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
        for length, rows in row_groups([len(row) for row in ids], self.policy.max_tokens):
            tokens = np.full((len(rows), length), self.spec.sep_id, np.int32)
            visible = np.zeros((len(rows), 1, 1, length), bool)
            for place, row in enumerate(rows):
                tokens[place, : len(ids[row])] = ids[row]
                visible[place, 0, 0, : len(ids[row])] = True
            mask = None if visible.all() else mx.array(visible)
            yield rows, self._forward(mx.array(tokens), mask)
            mx.clear_cache()

    def _within(self, memory_mb: int) -> BatchPolicy:
        """Set the memory limit of MLX and return a policy that keeps each call within it, including the model.

        Raises InputError if the limit is too low for the model.
        """
        model = self._on_worker(lambda: n_bytes(self.model))
        room = (memory_mb * _MEGABYTE - model) // self.spec.activation_bytes
        if room < _LEAST_LENGTH:
            needed = -(-(model + _LEAST_LENGTH * self.spec.activation_bytes) // _MEGABYTE)
            raise InputError(f"memory_mb {memory_mb}: this model needs at least {needed}")
        mx.set_memory_limit(memory_mb * _MEGABYTE)
        return BatchPolicy(max_tokens=min(room, _MAX_TOKENS), max_attention=_MAX_ATTENTION, padded=True)


def row_groups(lengths: Sequence[int], max_tokens: int) -> Iterator[tuple[int, list[int]]]:
    """Yield `(padded length, rows)` for each pass: rows of similar length, whose number is a power of two.

    Empty rows are omitted. A row longer than `max_tokens` gets a pass of its own.
    """
    alike = defaultdict(list)
    for row, length in enumerate(lengths):
        if length:
            alike[padded_length(length)].append(row)
    for length, rows in sorted(alike.items(), reverse=True):
        start = 0
        while start < len(rows):
            fitting = max(1, min(len(rows) - start, max_tokens // length))
            size = 1 << (fitting.bit_length() - 1)
            yield length, rows[start : start + size]
            start += size


def padded_length(n_tokens: int) -> int:
    """Return the smallest of the lengths 16, 20, 24, 28, 32, 40, … that is at least `n_tokens`."""
    if n_tokens <= _LEAST_LENGTH:
        return _LEAST_LENGTH
    step = (1 << ((n_tokens - 1).bit_length() - 1)) // _LENGTHS_AN_OCTAVE
    return -(-n_tokens // step) * step


def span_sums(states: mx.array, starts: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, mx.array]]:
    """Yield `(span indices [n], sums [n, D])` for the spans `[starts, starts + counts)` of states `[S, D]`.

    Spans of similar length are summed together, in float32. A sum depends only on its own tokens, not on other spans.
    """
    lengths = np.array([padded_length(int(count)) for count in counts])
    for length in np.unique(lengths):
        picked = np.flatnonzero(lengths == length)
        within = np.arange(length)[None, :] < counts[picked, None]  # [n, length]
        places = np.where(within, starts[picked, None] + np.arange(length), 0).astype(np.int32)
        tokens = states[mx.array(places)].astype(mx.float32)  # [n, length, D]
        yield picked, mx.where(mx.array(within)[..., None], tokens, 0).sum(axis=1)


def _forward(model: Model) -> Callable[[mx.array, mx.array | None], mx.array]:
    """Return the model's forward function, compiled if there is a GPU."""
    if not mx.metal.is_available():
        return model
    unmasked = mx.compile(lambda ids: model(ids))
    masked = mx.compile(lambda ids, mask: model(ids, mask))
    return lambda ids, mask: unmasked(ids) if mask is None else masked(ids, mask)


def _device() -> str:
    """Return the name of the MLX device: `gpu (Apple M3 Pro)` or `cpu`."""
    kind = mx.default_device().type.name
    return f"{kind} ({mx.device_info()['device_name']})" if kind == "gpu" else kind
