"""The MLX session: run models on the GPU of a Mac with Apple Silicon. The CPU also works, slowly, for parity tests.

All MLX calls run on one dedicated thread, because MLX keeps streams and compiled functions per thread. Rows of similar
length run together, packed without padding except inside attention. Spans are pooled on the device, and only their sums
`[N, D]` are copied to the host, in one array per group of rows.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import mlx.core as mx
import numpy as np

from pplx_edge.backends.mlx_proof import use_proven_kernels
from pplx_edge.errors import InputError
from pplx_edge.models.mlx_weights import n_bytes, open_model
from pplx_edge.models.qwen3_mlx import Rows
from pplx_edge.spec import ModelSpec
from pplx_edge.types import SESSION_DEFAULTS, BatchPolicy, SessionOptions, TokenBatch

_LEAST_LENGTH = 16
_LENGTHS_AN_OCTAVE = 4  # within attention, at most a fifth of a row is padding, a tenth on average
_BUSY_TOKENS = 512  # a pass with fewer tokens waits for the weights rather than for products
_MAX_TOKENS = 8192  # per call; enough to keep a GPU busy
_MAX_ATTENTION = 1 << 24
_CACHE_BYTES = 256_000_000  # limit for freed buffers during a call; the cache is cleared after it
_MEGABYTE = 1_000_000
T = TypeVar("T")
K = TypeVar("K")


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
        self._on_worker(lambda: use_proven_kernels(self.model))
        self.device = self._on_worker(_device)
        self.policy = BatchPolicy(max_tokens=_MAX_TOKENS, max_attention=_MAX_ATTENTION, padded=True)
        mx.set_cache_limit(_CACHE_BYTES)
        self._ahead = 1  # groups that run while the result of an earlier one is read
        if options.memory_mb is not None:
            self.policy, self._ahead = self._within(options.memory_mb), 0

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
        for rows, host in self._passes(batch, lambda rows, states: (rows, states)):
            ends = np.cumsum(real[rows].sum(axis=1))
            for row, of_row in zip(rows, np.split(host, ends[:-1]), strict=True):
                found[row, real[row]] = of_row
        return found

    def _span_means(self, batch: TokenBatch) -> np.ndarray:
        means = np.zeros((len(batch.spans), self.spec.dim), np.float32)
        lengths = batch.attention_mask.sum(axis=1)
        of_row = defaultdict(list)
        for i, span in enumerate(batch.spans):
            if span.n_tokens:
                of_row[span.row].append(i)

        def pooled(rows: list[int], states: mx.array) -> tuple[np.ndarray, mx.array] | None:
            starts = np.cumsum([0, *lengths[rows]])
            wanted = [(i, start) for row, start in zip(rows, starts, strict=False) for i in of_row[row]]
            if not wanted:
                return None
            spans = np.array([i for i, _ in wanted])
            counts = np.array([batch.spans[i].n_tokens for i in spans])
            order, sums = span_sums(states, np.array([start + batch.spans[i].start for i, start in wanted]), counts)
            return spans[order], sums

        for spans, sums in self._passes(batch, pooled):
            means[spans] = sums / np.array([[batch.spans[i].n_tokens] for i in spans], np.float32)
        return means

    def _passes(
        self, batch: TokenBatch, result: Callable[[list[int], mx.array], tuple[K, mx.array] | None]
    ) -> Iterator[tuple[K, np.ndarray]]:
        """Run the groups of rows, and yield what `result` returns for each, with its float32 array read to the host.

        `result` gets the rows and their packed states `[S, D]`. A group is started before the previous one is read, so
        that the GPU does not wait, unless the memory is limited. Freed buffers are kept until the last group.
        """
        ids = [row[mask.astype(bool)] for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
        started: deque[tuple[K, mx.array]] = deque()
        try:
            for rows in row_groups([len(row) for row in ids], self.policy.max_tokens):
                layout = Rows.of_lengths([len(ids[row]) for row in rows])
                tokens = mx.array(np.concatenate([ids[row] for row in rows]).astype(np.int32))
                if found := result(rows, self.model.model(tokens, layout)):
                    mx.async_eval(found[1])
                    started.append(found)
                while len(started) > self._ahead:
                    known, array = started.popleft()
                    yield known, np.array(array)
            while started:
                known, array = started.popleft()
                yield known, np.array(array)
        finally:
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


def row_groups(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Yield the rows of each pass: rows of similar length, the longest first, at most `max_tokens` with padding.

    Rows of any length join a pass that would leave the GPU idle. Empty rows are omitted. A row longer than `max_tokens`
    gets a pass of its own.
    """
    group: list[int] = []
    n_tokens = 0
    for row in sorted((row for row, length in enumerate(lengths) if length), key=lambda row: -lengths[row]):
        if group:
            longest = lengths[group[0]]
            similar = padded_length(lengths[row]) == padded_length(longest) or n_tokens < _BUSY_TOKENS
            if not similar or (len(group) + 1) * longest > max_tokens:
                yield group
                group, n_tokens = [], 0
        group.append(row)
        n_tokens += lengths[row]
    if group:
        yield group


def padded_length(n_tokens: int) -> int:
    """Return the smallest of the lengths 16, 20, 24, 28, 32, 40, … that is at least `n_tokens`."""
    if n_tokens <= _LEAST_LENGTH:
        return _LEAST_LENGTH
    step = (1 << ((n_tokens - 1).bit_length() - 1)) // _LENGTHS_AN_OCTAVE
    return -(-n_tokens // step) * step


def span_sums(states: mx.array, starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, mx.array]:
    """Return the sums of the spans `[starts, starts + counts)` of states `[S, D]`, and the order they are in, `[N]`.

    The sums are float32 `[N, D]`. Spans of similar length are summed together. A sum depends only on its own tokens,
    not on other spans.
    """
    lengths = np.array([padded_length(int(count)) for count in counts])
    order, sums = [], []
    for length in np.unique(lengths):
        picked = np.flatnonzero(lengths == length)
        within = np.arange(length)[None, :] < counts[picked, None]  # [n, length]
        places = np.where(within, starts[picked, None] + np.arange(length), 0).astype(np.int32)
        tokens = states[mx.array(places)].astype(mx.float32)  # [n, length, D]
        order.append(picked)
        sums.append(mx.where(mx.array(within)[..., None], tokens, 0).sum(axis=1))
    return np.concatenate(order), mx.concatenate(sums)


def _device() -> str:
    """Return the name of the MLX device: `gpu (Apple M3 Pro)` or `cpu`."""
    kind = mx.default_device().type.name
    return f"{kind} ({mx.device_info()['device_name']})" if kind == "gpu" else kind
