"""The Core ML session: run rows one at a time, each with the shortest function that it fits in.

Only the prediction depends on the machine. The session takes a `Predict` function: that of Core ML on a Mac
(`coreml_runtime`), or an equivalent one on other machines.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np

from pplx_edge import layout
from pplx_edge.backends import coreml_io as io
from pplx_edge.backends.coreml_probe import CPU, least_cosine
from pplx_edge.backends.coreml_runtime import CoreMLRuntime, require_macos
from pplx_edge.backends.coreml_table import EmbeddingTable
from pplx_edge.errors import ArtifactError, InputError, ModelNotFound, TextTooLong
from pplx_edge.registry import COREML
from pplx_edge.spec import ModelSpec
from pplx_edge.types import COMPUTE_UNITS, SESSION_DEFAULTS, BatchPolicy, SessionOptions, Span, TokenBatch
from pplx_edge.vectors.pooling import mean_of
from pplx_edge.weights.artifact import Artifact, is_artifact

# Takes the length of a function and its inputs, and returns its outputs, as described in `coreml_io`.
Predict = Callable[[int, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]

DEFAULT_UNITS = "cpu+ane"
_INPUTS_LOCK = Lock()  # the arrays are shared by all sessions


def open_session(directory: Path, options: SessionOptions = SESSION_DEFAULTS) -> "CoreMLSession":
    """Open the converted model in a directory on `options.compute_units` (default: cpu+ane) and return the session.

    Raises InputError for unknown units and on machines without Core ML, ArtifactError or ModelNotFound if the directory
    contains no Core ML artifact, and ModelError if Core ML cannot compile it.
    """
    units = options.compute_units or DEFAULT_UNITS
    if units not in COMPUTE_UNITS:
        raise InputError(f"unknown compute units {units!r}: choose one of {', '.join(COMPUTE_UNITS)}")
    artifact = open_artifact(directory)
    try:
        require_macos()
    except InputError as error:
        advice = f"use an onnx format here, or evaluate the model with: pplx-edge info {directory} --evaluate"
        raise InputError(f"{directory}: {error}; {advice}") from None
    spec = ModelSpec.from_directory(directory)
    lengths = row_lengths(artifact)
    package = artifact.path(layout.COREML_PACKAGE)
    if units != CPU:
        _require_size_for_ane(package, spec, units)
    runtime = CoreMLRuntime(artifact.directory, artifact.fingerprint, units, least_cosine(artifact.parity))
    return CoreMLSession(spec, open_table(artifact, spec), lengths, runtime.predict, lambda: runtime.device)


def _require_size_for_ane(package: Path, spec: ModelSpec, units: str) -> None:
    """Raise InputError if the weights are too large for the Neural Engine, naming the formats that fit."""
    n_bytes = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    if n_bytes >= io.ANE_WEIGHT_BYTES:
        fitting = ", ".join(io.formats_for_ane(spec)) or "none"
        raise InputError(
            f"{package}: {n_bytes / 1e9:.1f} GB of weights exceed the limit of the Neural Engine, "
            f"{io.ANE_WEIGHT_BYTES / 1e9:.1f} GB, so compute_units={units!r} cannot run them; formats of this model "
            f"that fit: {fitting}; otherwise use the mlx backend or compute_units={CPU!r}"
        )


def open_artifact(directory: Path) -> Artifact:
    """Open the Core ML artifact in a directory. Raises ModelNotFound or ArtifactError if there is none."""
    if not is_artifact(directory):
        raise ModelNotFound(
            f"{directory}: no Core ML model here; convert it: pplx-edge convert {directory} --to coreml-fp16 --out DIR"
        )
    return Artifact.open(directory)


def open_table(artifact: Artifact, spec: ModelSpec) -> EmbeddingTable:
    """Open the embedding table of an artifact."""
    return EmbeddingTable.open(artifact.path(layout.COREML_TABLE), (spec.vocab_size, spec.hidden_size))


def row_lengths(artifact: Artifact) -> io.FixedLengths:
    """Return the lengths of the functions of an artifact, as its manifest lists them."""
    lengths = artifact.weights.get("lengths")
    if not isinstance(lengths, list) or not lengths or not all(isinstance(length, int) for length in lengths):
        raise ArtifactError(f"{artifact.directory}: the manifest lists no function lengths; convert the model again")
    return io.FixedLengths(tuple(lengths))


class CoreMLSession:
    """A Core ML model with functions of fixed length. `spec.max_tokens` is the longest row they accept."""

    backend = "coreml"
    policy = BatchPolicy(max_tokens=512)

    def __init__(
        self,
        spec: ModelSpec,
        table: EmbeddingTable,
        lengths: io.FixedLengths,
        predict: Predict,
        device: Callable[[], str] = lambda: "unknown",
    ):
        self.spec = replace(spec, max_tokens=min(spec.max_tokens, lengths.limit))
        self._table, self._lengths, self._predict, self._read_device = table, lengths, predict, device

    @property
    def device(self) -> str:
        """The devices that run the operators, according to the compute plan of Core ML. May take minutes."""
        return self._read_device()

    def token_states(self, batch: TokenBatch) -> np.ndarray:
        """Return the final hidden states, float32 `[B, T, D]`, zeros at padding."""
        states = np.zeros((*batch.input_ids.shape, self.spec.dim), np.float32)
        for row, mask in enumerate(batch.attention_mask.astype(bool)):
            if mask.any():
                outputs = self._run(batch, row, ())
                states[row, mask] = outputs[io.TOKEN_STATES][0, : mask.sum()]
        return states

    def span_means(self, batch: TokenBatch) -> np.ndarray:
        """Return the mean state of each span, float32 `[N, D]`; an empty span gives zeros.

        The program pools up to MAX_SPANS spans of a row; a row with more spans is pooled on the host. Each row is run
        only once either way. Both accumulate in float32, but their last bits differ.
        """
        means = np.zeros((len(batch.spans), self.spec.dim), np.float32)
        for row, wanted in _by_row(batch.spans).items():
            spans = [batch.spans[i] for i in wanted]
            pooled_inside = len(spans) <= io.MAX_SPANS
            outputs = self._run(batch, row, spans if pooled_inside else ())
            if pooled_inside:
                means[wanted] = outputs[io.SPAN_MEANS][0, : len(spans)]
            else:
                states = outputs[io.TOKEN_STATES][0]
                means[wanted] = [mean_of(states[span.start : span.stop]) for span in spans]
        return means

    def _run(self, batch: TokenBatch, row: int, spans: Sequence[Span]) -> Mapping[str, np.ndarray]:
        """Return the outputs for one row, with its real tokens first. Raises TextTooLong if the row is too long."""
        ids = batch.input_ids[row][batch.attention_mask[row].astype(bool)]
        if len(ids) > self.spec.max_tokens:
            raise TextTooLong(
                f"row {row} has {len(ids):,} tokens, limit {self.spec.max_tokens:,} for this Core ML model; use "
                f"encode_stream() or truncate=True, {COREML.longer_inputs}",
                index=row,
                n_tokens=len(ids),
                limit=self.spec.max_tokens,
            )
        length = self._lengths.fitting(len(ids))
        embeds = self._table.rows(ids)
        with _INPUTS_LOCK:
            inputs = io.permanent_inputs(length, embeds.shape[1])
            io.fill_inputs(inputs, embeds, [(span.start, span.stop) for span in spans])
            outputs = self._predict(length, inputs)
            return {name: np.array(outputs[name]) for name in (io.TOKEN_STATES, io.SPAN_MEANS)}


def _by_row(spans: Sequence[Span]) -> dict[int, list[int]]:
    """Return the indices of the non-empty spans by row. Rows without any are omitted."""
    rows: dict[int, list[int]] = {}
    for i, span in enumerate(spans):
        if span.n_tokens:
            rows.setdefault(span.row, []).append(i)
    return rows
