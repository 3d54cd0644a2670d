"""Checkpoint to ONNX artifact: weights, graph, tokenizer, parity, manifest; whole or not at all."""

import re
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnxruntime as ort

from pplx_convert import onnx_graph
from pplx_convert.graph_builder import GraphBuilder, WeightFile
from pplx_convert.numerics import NUMERICS, Numerics
from pplx_convert.parity import LIMITS, PROBE_TEXTS, ParityLimits, ParityReport, means_of
from pplx_edge.artifact import ONNX_LAYOUT, Artifact, sha256, write_manifest, writing
from pplx_edge.backends.onnx_options import session_options
from pplx_edge.batching import collate
from pplx_edge.checkpoint import Checkpoint
from pplx_edge.errors import InputError
from pplx_edge.models.qwen3_numpy import layer_states
from pplx_edge.spec import ModelSpec
from pplx_edge.tokenization import Tokenizer
from pplx_edge.types import TokenBatch, TokenRow

FORMAT_REVISION = 1  # raise it when the graph or the numerics change, so that cached conversions are made anew
_MADE_BY = f"pplx-edge onnx converter {FORMAT_REVISION}"
States = TypeVar("States")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def convert(
    source: str | Path,
    out: str | Path,
    format: str = "onnx-int8",
    *,
    replace: bool = False,
    source_name: str | None = None,
    revision: str | None = None,
    limits: ParityLimits | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Artifact:
    """The artifact written to `out` from the checkpoint directory `source`.

    Weights are read, converted and written tensor by tensor; the result is run layer by layer against the NumPy
    reference. `source_name` and `revision` go into the manifest (by default the directory's name, and its hub commit
    when it is a hub snapshot). `replace` allows `out` to exist. `on_progress` is told the steps done and the steps in
    all: each layer is stored, run, and compared.

    Raises InputError, CheckpointError, UnsupportedModel, ParityError or StorageError, and then leaves nothing behind.
    """
    if format not in NUMERICS:
        raise InputError(f"unknown format {format!r}: choose one of {', '.join(NUMERICS)}")
    source, out = Path(source), Path(out)
    checkpoint = Checkpoint.open(source)
    rows = probe_rows(Tokenizer.open(source, checkpoint.spec), checkpoint.spec)
    numerics = NUMERICS[format]()
    step = _steps(checkpoint.spec, on_progress)
    with writing(out, replace=replace) as directory:
        builder = write_graph(checkpoint, numerics, directory, step)
        copy_text_files(source, directory)
        report = measure_parity(checkpoint, numerics, builder, directory, rows, step)
        report.require(limits or LIMITS[format])
        write_manifest(
            directory,
            format=format,
            source=describe_source(checkpoint, source_name, revision),
            weights={"projections": format.removeprefix("onnx-"), "n_parameters": checkpoint.spec.n_parameters},
            parity=report.as_dict(),
            made_by=_MADE_BY,
        )
    return Artifact.open(out)


def _steps(spec: ModelSpec, on_progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    """Called once a layer when storing, and once a layer and at the end by each of the two passes that are compared."""
    done, total = count(1), 3 * spec.n_layers + 2
    return lambda: on_progress(next(done), total) if on_progress else None


def write_graph(
    checkpoint: Checkpoint, numerics: Numerics, directory: Path, step: Callable[[], None] = lambda: None
) -> GraphBuilder:
    """Writes graph and data file; returns the builder, which knows where each weight is."""
    builder = GraphBuilder()
    file = WeightFile(directory / ONNX_LAYOUT.weights)
    try:
        onnx_graph.store_weights(checkpoint, numerics, builder, file, step)
    finally:
        file.close()
    stored = builder.with_weights(("",))
    onnx.save_model(onnx_graph.whole_model(checkpoint.spec, numerics, builder), str(directory / ONNX_LAYOUT.graph))
    return stored


def copy_text_files(source: Path, directory: Path) -> None:
    """Copies config.json and the tokenizer's files."""
    for name in (ONNX_LAYOUT.config, *ONNX_LAYOUT.tokenizer):
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def describe_source(checkpoint: Checkpoint, name: str | None, revision: str | None) -> dict[str, object]:
    """What the manifest says of the source: name, revision and the hash of each weight file."""
    folder = checkpoint.directory.resolve()
    if revision is None and _COMMIT.fullmatch(folder.name):
        revision = folder.name
    return {
        "name": name or folder.name,
        "revision": revision,
        "sha256": {path.name: sha256(path) for path in checkpoint.files},
    }


def probe_rows(tokenizer: Tokenizer, spec: ModelSpec) -> list[TokenRow]:
    """The probe texts as token rows, cut to the model's window, those without tokens left out."""
    return [row.cut(spec.max_tokens) for row in tokenizer.text_rows(PROBE_TEXTS) if len(row)]


def measure_parity(
    checkpoint: Checkpoint,
    numerics: Numerics,
    stored: GraphBuilder,
    directory: Path,
    rows: list[TokenRow],
    step: Callable[[], None],
) -> ParityReport:
    """The conversion's means against the reference's, both computed with one layer in memory at a time."""
    batch = collate(rows, checkpoint.spec.sep_id)
    packed = _last(section_states(checkpoint.spec, numerics, stored, directory, batch), step)
    converted = np.split(packed, np.cumsum([len(row) for row in rows])[:-1])
    reference = _last(layer_states(checkpoint, [row.ids for row in rows]), step)
    return ParityReport.compare(means_of(reference), means_of(converted), int(batch.lengths.sum()))


def _last(states: Iterator[States], step: Callable[[], None]) -> States:
    """The final states of a pass, which yields after the embedding, after each layer and after the final norm."""
    final = next(states)
    for after_section in states:
        final = after_section
        step()
    return final


def section_states(
    spec: ModelSpec, numerics: Numerics, stored: GraphBuilder, directory: Path, batch: TokenBatch
) -> Iterator[np.ndarray]:
    """Packed states `[S, D]` after the embedding, after each layer and after the final norm, one section at a time."""
    tokens = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    (residual,) = _run(onnx_graph.embedding_section(spec, numerics, stored), directory, tokens)
    yield residual
    state = {"residual_in": residual}
    for index in range(spec.n_layers):
        feeds = {"attention_mask": batch.attention_mask} | state
        residual, pending = _run(onnx_graph.layer_section(spec, numerics, stored, index), directory, feeds)
        yield residual + pending
        state = {"residual_in": residual, "pending_in": pending}
    (states,) = _run(onnx_graph.final_section(spec, numerics, stored), directory, state)
    yield states


def _run(model: onnx.ModelProto, directory: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = session_options()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(directory))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)  # type: ignore[return-value]
