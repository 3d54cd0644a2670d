"""Run converted models with our own CPU kernels."""

import ctypes
import mmap
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pplx_edge import layout
from pplx_edge.backends.native_library import NativeLibrary, load_library, requested_isa
from pplx_edge.errors import InputError
from pplx_edge.registry import NATIVE
from pplx_edge.spec import ModelSpec
from pplx_edge.types import SESSION_DEFAULTS, BatchPolicy, SessionOptions, TokenBatch
from pplx_edge.weights.artifact import Artifact
from pplx_edge.weights.native_file import FORMAT_BITS, map_model

_MEGABYTE = 1_000_000
_MAX_INT32 = np.iinfo(np.int32).max


def open_session(directory: Path, options: SessionOptions = SESSION_DEFAULTS) -> "NativeSession":
    """Open the artifact in a directory: a model file, which is mapped, or an int8 graph, which is rearranged in memory.

    Raises ArtifactError if it is damaged, and ModelError if there are no kernels.
    """
    library, spec = load_library(), ModelSpec.from_directory(directory)
    artifact = Artifact.open(directory)
    if artifact.format in NATIVE.formats:
        path = artifact.path(layout.NATIVE_MODEL)
        map_model(path, spec, FORMAT_BITS[artifact.format]).close()  # says in words what is wrong with a damaged file
        return NativeSession(library, spec, path, options)
    from pplx_edge.backends.native_repack import repacked_image

    return NativeSession(library, spec, repacked_image(directory, spec), options)


@dataclass(frozen=True, slots=True, eq=False)
class _PackedRows:
    """Ids of the real tokens of some rows, int32 `[S]`, and where rows start in them, int64 `[rows + 1]`."""

    ids: np.ndarray
    starts: np.ndarray

    @property
    def arguments(self) -> tuple[int, int, int]:
        return self.ids.ctypes.data, self.starts.ctypes.data, len(self.starts) - 1

    @property
    def sizes(self) -> tuple[int, int]:
        """The numbers of rows and of tokens."""
        return len(self.starts) - 1, len(self.ids)


class NativeSession:
    """A session for a model file, or for its image in memory. All sessions of a process share one pool of threads.

    The states of a row are the same bits in any batch, with any number of threads and on every processor.
    """

    backend = "native"
    policy = BatchPolicy(max_tokens=512)

    def __init__(
        self,
        library: NativeLibrary,
        spec: ModelSpec,
        source: Path | mmap.mmap,
        options: SessionOptions = SESSION_DEFAULTS,
        isa: str | None = None,
    ):
        self.library, self.spec, self.options = library, spec, options
        self.threads = options.threads or library.functions.pplx_default_threads()
        self._image = None if isinstance(source, Path) else np.frombuffer(source, np.uint8)
        path = bytes(source) if isinstance(source, Path) else None
        self.model_bytes = source.stat().st_size if isinstance(source, Path) else len(source)
        model, name = ctypes.c_void_p(), requested_isa() if isa is None else isa
        image = (None, 0) if self._image is None else (self._image.ctypes.data, self.model_bytes)
        subject = str(source) if path else "the image of the model"
        library.call("pplx_open", path, *image, name.encode(), ctypes.byref(model), subject=subject)
        self._model = model
        self._finalizer = weakref.finalize(self, library.functions.pplx_close, model)
        self.isa: str = library.functions.pplx_isa(model).decode()
        if options.memory_mb is not None and self.buffer_bytes(1, 1) > self._buffer_limit(options.memory_mb):
            least = -(-(self.model_bytes + self.buffer_bytes(1, 1)) // _MEGABYTE)
            raise InputError(f"memory_mb {options.memory_mb} is too little: this model needs at least {least} MB")

    @property
    def device(self) -> str:
        """The instruction set that computes."""
        return f"cpu ({self.isa})"

    def buffer_bytes(self, n_rows: int, n_tokens: int) -> int:
        """Return the memory that a call with so many rows and tokens needs on top of the model."""
        return self.library.functions.pplx_buffer_bytes(self._model, n_rows, n_tokens, self.threads)

    def phase_seconds(self) -> dict[str, float]:
        """Return the seconds that all calls so far spent in each phase, from one wait of all threads to the next."""
        names = self.library.functions.pplx_phase_names().decode().split(",")
        seconds = np.empty(len(names))
        self.library.functions.pplx_phase_seconds(self._model, seconds.ctypes.data)
        return dict(zip(names, seconds.tolist(), strict=True))

    def packed_states(self, batch: TokenBatch) -> np.ndarray:
        """Return the states of the real tokens of all rows, concatenated: float32 `[S, D]`."""
        states = np.empty((int(batch.lengths.sum()), self.spec.dim), np.float32)
        done = 0
        for rows, _ in self._calls(batch):
            place = states[done : done + len(rows.ids)]
            self.library.call("pplx_states", self._model, *rows.arguments, self.threads, place.ctypes.data)
            done += len(rows.ids)
        return states

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Return the final hidden states, float32 `[B, T, D]`, zeros at padding."""
        states = np.zeros((*batch.input_ids.shape, self.spec.dim), np.float32)
        states[batch.attention_mask.astype(bool)] = self.packed_states(batch)
        return states

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Return the mean state of each span, float32 `[N, D]`; an empty span gives zeros."""
        means = np.zeros((len(batch.spans), self.spec.dim), np.float32)
        owners = np.array([span.row for span in batch.spans], np.int64)
        bounds = np.array([(span.start, span.stop) for span in batch.spans], np.int64).reshape(-1, 2)
        for rows, (first, stop) in self._calls(batch):
            (mine,) = np.nonzero((owners >= first) & (owners < stop))
            spans = bounds[mine] + rows.starts[owners[mine] - first][:, None]
            found = np.empty((len(mine), self.spec.dim), np.float32)
            arguments = (*rows.arguments, spans.ctypes.data, len(mine), self.threads, found.ctypes.data)
            self.library.call("pplx_span_means", self._model, *arguments)
            means[mine] = found
        return means

    def layer_states(self, batch: TokenBatch) -> Iterator[np.ndarray]:
        """Yield packed states `[S, D]` after the embedding, after each layer and after the final norm."""
        rows = _packed(batch, 0, len(batch.lengths))
        states = np.empty((len(rows.ids), self.spec.dim), np.float32)
        for last in range(self.spec.n_layers + 1):
            first = max(last - 1, 0)
            self.library.call(
                "pplx_run_layers", self._model, *rows.arguments, first, last, self.threads, states.ctypes.data
            )
            yield states.copy()
        n = self.spec.n_layers
        self.library.call("pplx_run_layers", self._model, *rows.arguments, n, n + 1, self.threads, states.ctypes.data)
        yield states

    def _calls(self, batch: TokenBatch) -> Iterator[tuple[_PackedRows, tuple[int, int]]]:
        """Yield the rows of a batch in groups whose buffers fit into the memory limit, with the range of each group."""
        lengths = batch.lengths
        first, stop = 0, len(lengths)
        while first < len(lengths):
            while (limit := self.options.memory_mb) is not None:
                n_tokens = int(lengths[first:stop].sum())
                if self.buffer_bytes(stop - first, n_tokens) <= self._buffer_limit(limit):
                    break
                if stop - first == 1:
                    raise InputError(
                        f"{n_tokens} tokens do not fit into memory_mb {limit}: shorten the input or raise the limit"
                    )
                stop = first + (stop - first) // 2
            yield _packed(batch, first, stop), (first, stop)
            first, stop = stop, len(lengths)

    def _buffer_limit(self, memory_mb: int) -> int:
        return memory_mb * _MEGABYTE - self.model_bytes


def _packed(batch: TokenBatch, first: int, stop: int) -> _PackedRows:
    """Return rows `[first, stop)` of a batch without padding."""
    ids = batch.input_ids[first:stop][batch.attention_mask[first:stop].astype(bool)]
    starts = np.concatenate([[0], np.cumsum(batch.lengths[first:stop])]).astype(np.int64)
    return _PackedRows(np.clip(ids, -1, _MAX_INT32).astype(np.int32), starts)
