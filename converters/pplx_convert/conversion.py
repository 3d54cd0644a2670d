"""Convert a checkpoint to an artifact of any format: weights, text files, parity report and manifest, all or nothing.

The writer of a backend's formats, named in `pplx_edge.registry`, writes the files and runs the written model layer by
layer. This module runs the NumPy reference at the same time and compares the two, with one layer of each in memory.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from pplx_convert.equalization import Equalization, EqualizedCheckpoint, run_reference
from pplx_convert.parity import LONGEST_ROW, ParityReport, probe_rows
from pplx_edge import layout
from pplx_edge.backends import require_installed
from pplx_edge.errors import InputError
from pplx_edge.files import replacing_directory, storage_errors
from pplx_edge.registry import DEFAULT_FORMAT, ParityLimits, entry, require_format
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import TokenRow
from pplx_edge.weights.artifact import Artifact, sha256, write_manifest
from pplx_edge.weights.checkpoint import Checkpoint

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """Options that only some formats support.

    - `overrides`: weight formats for individual matrices, by shell patterns over their paths, for example
      `{"layers.0.*": "q8"}`. If several patterns match, the last one applies (mlx).
    - `max_mb`: the limit for the size of all weights, in megabytes (mlx-mixed).
    - `max_tokens`: the length of the longest function, in tokens, up to 2,048 (coreml; default: 512).
    """

    overrides: Mapping[str, str] = field(default_factory=dict)
    max_mb: int | None = None
    max_tokens: int | None = None

    def require_only(self, artifact_format: str, *names: str) -> None:
        """Raise InputError, naming the first option that is set but is not one of `names`."""
        for option in fields(self):
            if getattr(self, option.name) and option.name not in names:
                raise InputError(f"{option.name} is not an option of {artifact_format}")


_NO_OPTIONS = ConvertOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request to a writer: write a checkpoint in a format to an existing, empty directory.

    The checkpoint is already equalized. `rows` are the tokenized probe texts. The writer calls `step` once after
    storing each layer.
    """

    checkpoint: EqualizedCheckpoint
    artifact_format: str
    directory: Path
    rows: list[TokenRow]
    step: Callable[[], None]
    options: ConvertOptions = _NO_OPTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The result of a writer: the states of the probe rows, and a description of the weights for the manifest.

    `states` yields the states `[T, D]` of every row after the embedding, after each layer and after the final norm. It
    may run the model lazily, one layer per item. `residual` is the exponent by which the stored residual stream is
    divided.
    """

    states: Iterator[list[np.ndarray]]
    weights: Mapping[str, Any] = field(default_factory=dict)
    residual: int = 0


# Writes the weights and the graph of a checkpoint. Each backend names one in `pplx_edge.registry`.
Writer = Callable[[Job], Written]


def convert(
    source: str | Path,
    out: str | Path,
    artifact_format: str = DEFAULT_FORMAT,
    *,
    replace: bool = False,
    source_name: str | None = None,
    revision: str | None = None,
    limits: ParityLimits | None = None,
    equalize: bool = True,
    options: ConvertOptions = _NO_OPTIONS,
    on_progress: Callable[[int, int], None] | None = None,
) -> Artifact:
    """Convert the checkpoint in the directory `source` and return the artifact written to `out`.

    The NumPy reference runs on the probe texts first, layer by layer, and the equalization is measured on the way,
    unless the checkpoint comes with one. Weights are then read, folded, converted and written tensor by tensor, and the
    result is run layer by layer and compared with the reference. `equalize=False` converts the weights as they are.
    `source_name` and `revision` are recorded in the manifest; they default to the directory name and, for a hub
    snapshot, its commit. `replace` allows an existing `out` to be replaced. `limits` are the parity
    limits (default: those of the format), and `options` are the options that some formats support. `on_progress` is
    called with the number of steps done and the total number of steps: each layer is stored, run and compared.

    Raises InputError, CheckpointError, UnsupportedModel, MissingExtra, ParityError or StorageError. No partial output
    is left after an error.
    """
    backend = require_format(artifact_format)
    require_installed(backend)
    write: Writer = entry(backend.writer)
    source, out = Path(source), Path(out)
    checkpoint = Checkpoint.open(source)
    if checkpoint.spec.residual_divisor != 1:
        raise InputError(f"{source}: is a conversion to float16; convert the checkpoint that it was made from")
    rows = probe_rows(Tokenizer.open(source, checkpoint.spec), checkpoint.spec, options.max_tokens or LONGEST_ROW)
    step = _steps(checkpoint.spec, on_progress)
    with storage_errors(out), replacing_directory(out, replace=replace) as directory:
        copy_text_files(source, directory)
        given = Equalization.stored(checkpoint) if equalize else Equalization.none(checkpoint.spec)
        reference = run_reference(checkpoint, [row.ids for row in rows], given, step)
        equalized = EqualizedCheckpoint(checkpoint, reference.equalization)
        written = write(
            Job(
                checkpoint=equalized,
                artifact_format=artifact_format,
                directory=directory,
                rows=rows,
                step=step,
                options=options,
            )
        )
        report = ParityReport.of_means(reference.means, _counted(written.states, step))
        report.require(limits or backend.formats[artifact_format])
        write_manifest(
            directory,
            artifact_format=artifact_format,
            source=describe_source(checkpoint, source_name, revision),
            weights=dict(written.weights) | {"n_parameters": checkpoint.spec.n_parameters},
            equalization=reference.equalization.summary(written.residual) if equalize else {},
            parity=report.as_dict(),
            made_by=f"pplx-edge {backend.name} converter {backend.revision}",
        )
    return Artifact.open(out)


def split_rows(packed: Iterator[np.ndarray], rows: Sequence[TokenRow]) -> Iterator[list[np.ndarray]]:
    """Yield packed states `[S, D]` as the states `[T, D]` of each row."""
    stops = np.cumsum([len(row) for row in rows])[:-1]
    return (np.split(states, stops) for states in packed)


def copy_text_files(source: Path, directory: Path) -> None:
    """Copy config.json and the tokenizer files."""
    for name in layout.TEXT_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)


def describe_source(checkpoint: Checkpoint, name: str | None, revision: str | None) -> dict[str, object]:
    """Return the description of the source for the manifest: name, revision and the hash of each weight file."""
    folder = checkpoint.directory.resolve()
    if revision is None and _COMMIT.fullmatch(folder.name):
        revision = folder.name
    return {
        "name": name or folder.name,
        "revision": revision,
        "sha256": {path.name: sha256(path) for path in checkpoint.files},
    }


def _steps(spec: ModelSpec, on_progress: Callable[[int, int], None] | None) -> Callable[[], None]:
    """Return a function that reports one step.

    It is called once per layer while storing, and once per layer and for the final norm in each of the two passes.
    """
    done, total = count(1), 3 * spec.n_layers + 2
    return lambda: on_progress(next(done), total) if on_progress else None


def _counted(states: Iterator[list[np.ndarray]], step: Callable[[], None]) -> Iterator[list[np.ndarray]]:
    yield next(states)
    for after in states:
        step()
        yield after
