"""Checkpoint to artifact, whatever the format: weights, text files, parity, manifest; whole or not at all.

A family of formats is a module that serves `Family`. It writes its files, and runs what it has written layer by layer;
this frame runs the NumPy reference beside it and compares, with one layer of either in memory.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pplx_convert.parity import LIMITS, PROBE_TEXTS, ParityLimits, ParityReport
from pplx_edge.backends import require_installed
from pplx_edge.errors import InputError
from pplx_edge.models.qwen3_numpy import layer_states
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import TokenRow
from pplx_edge.weights.artifact import (
    FORMATS,
    TEXT_FILES,
    Artifact,
    family_of,
    format_revision,
    sha256,
    write_manifest,
    writing,
)
from pplx_edge.weights.checkpoint import Checkpoint

# Modules, imported when a format of theirs is asked for.
FAMILIES = {
    "onnx": "pplx_convert.onnx.converter",
    "mlx": "pplx_convert.mlx.converter",
    "coreml": "pplx_convert.coreml.converter",
}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """What some formats can be told. `overrides` names how single matrices are kept, `{"layers.0.*": "q8"}`, by shell
    patterns over their paths; the last that fits counts (mlx). `max_mb` is what all weights may take (mlx-mixed).
    """

    overrides: Mapping[str, str] = field(default_factory=dict)
    max_mb: int | None = None

    def require_only(self, format: str, *names: str) -> None:
        """Raises InputError naming an option that is set and that the format does not have."""
        for option in fields(self):
            if getattr(self, option.name) and option.name not in names:
                raise InputError(f"{option.name}: not an option of {format}")


_NO_OPTIONS = ConvertOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a family is asked for: a checkpoint in a format, written into a directory that exists and is empty.

    `rows` are the probe texts. `step` is called once a layer when storing, and once a layer and at the end when
    running.
    """

    checkpoint: Checkpoint
    format: str
    directory: Path
    rows: list[TokenRow]
    step: Callable[[], None]
    options: ConvertOptions = _NO_OPTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a family has written: how weights are kept, for the manifest, and the probe rows through the result.

    `states` yields the states `[T, D]` of every row after the embedding, after each layer and, last, after the final
    norm, and may run the model while it is asked.
    """

    states: Iterator[list[np.ndarray]]
    weights: Mapping[str, Any] = field(default_factory=dict)


class Family(Protocol):
    """A module of converters that share a file layout."""

    def write(self, job: Job) -> Written:
        """Writes weights and graph of a checkpoint."""
        ...


def family(format: str) -> Family:
    """The family of a format. Raises InputError for an unknown one, MissingExtra when its packages are missing."""
    name = _family_name(format)
    require_installed(name)
    return import_module(FAMILIES[name])  # type: ignore[return-value]


def _family_name(format: str) -> str:
    known = [name for formats in FORMATS.values() for name in formats]
    if format not in known:
        raise InputError(f"unknown format {format!r}: choose one of {', '.join(known)}")
    return family_of(format)


def convert(
    source: str | Path,
    out: str | Path,
    format: str = "onnx-int8",
    *,
    replace: bool = False,
    source_name: str | None = None,
    revision: str | None = None,
    limits: ParityLimits | None = None,
    options: ConvertOptions = _NO_OPTIONS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Artifact:
    """The artifact written to `out` from the checkpoint directory `source`.

    Weights are read, converted and written tensor by tensor; the result is run layer by layer against the NumPy
    reference. `source_name` and `revision` go into the manifest (by default the directory's name, and its hub commit
    when it is a hub snapshot). `replace` allows `out` to exist. `options` are those that some formats have.
    `on_progress` is told the steps done and the steps in all: each layer is stored, run, and compared.

    Raises InputError, CheckpointError, UnsupportedModel, MissingExtra, ParityError or StorageError, and then leaves
    nothing behind.
    """
    made_by = family(format)
    source, out = Path(source), Path(out)
    checkpoint = Checkpoint.open(source)
    rows = probe_rows(Tokenizer.open(source, checkpoint.spec), checkpoint.spec)
    step = _steps(checkpoint.spec, on_progress)
    with writing(out, replace=replace) as directory:
        copy_text_files(source, directory)
        written = made_by.write(
            Job(checkpoint=checkpoint, format=format, directory=directory, rows=rows, step=step, options=options)
        )
        report = measure_parity(checkpoint, rows, written.states, step)
        report.require(limits or LIMITS[format])
        write_manifest(
            directory,
            format=format,
            source=describe_source(checkpoint, source_name, revision),
            weights=dict(written.weights) | {"n_parameters": checkpoint.spec.n_parameters},
            parity=report.as_dict(),
            made_by=f"pplx-edge {family_of(format)} converter {format_revision(format)}",
        )
    return Artifact.open(out)


def probe_rows(tokenizer: Tokenizer, spec: ModelSpec) -> list[TokenRow]:
    """The probe texts as token rows, cut to the model's window, those without tokens left out."""
    return [row.cut(spec.max_tokens) for row in tokenizer.text_rows(PROBE_TEXTS) if len(row)]


def copy_text_files(source: Path, directory: Path) -> None:
    """Copies config.json and the tokenizer's files."""
    for name in TEXT_FILES:
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


def measure_parity(
    checkpoint: Checkpoint, rows: list[TokenRow], converted: Iterator[list[np.ndarray]], step: Callable[[], None]
) -> ParityReport:
    """The conversion beside the reference, after every layer and at the end."""
    reference = layer_states(checkpoint, [row.ids for row in rows])
    return ParityReport.of_passes(_counted(reference, step), _counted(converted, step))


def _steps(spec: ModelSpec, on_progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    """Called once a layer when storing, and once a layer and at the end by each of the two passes that are compared."""
    done, total = count(1), 3 * spec.n_layers + 2
    return lambda: on_progress(next(done), total) if on_progress else None


def _counted(states: Iterator[list[np.ndarray]], step: Callable[[], None]) -> Iterator[list[np.ndarray]]:
    yield next(states)
    for after in states:
        step()
        yield after
