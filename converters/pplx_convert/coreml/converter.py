"""Checkpoint to Core ML packages and the embedding table beside them, and saved packages run layer by layer.

`model.mlpackage` holds one function for each fixed length, over shared weights; what the Neural Engine runs has a fixed
shape. `flexible.mlpackage` holds one function of any length, for the graphics processor. It is a package of its own
because Core ML has been reported to refuse, on some systems by ending the process, models that mix inputs of fixed and
of free shape: a fault there must not take the other functions with it. Both weight files are one file under two names
(a hard link), where the disk can do that.
"""

import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pplx_convert.conversion import Job, Written
from pplx_convert.coreml.graph import FINAL_NORM, EncoderGraph, layer_output, store_layer, store_rotation
from pplx_convert.coreml.mil import restart_names
from pplx_convert.coreml.mil_oracle import MilProgram
from pplx_convert.coreml.package import WEIGHT_FILE, WEIGHT_FOLDER, PackageWeights, data_folder, write_package
from pplx_convert.coreml.weights import PRECISIONS
from pplx_convert.safetensors_file import SafetensorsFile
from pplx_edge.backends import coreml_io as io
from pplx_edge.backends.coreml_table import CODES, SCALES, TABLE, EmbeddingTable
from pplx_edge.errors import InputError
from pplx_edge.spec import ModelSpec
from pplx_edge.types import TokenRow
from pplx_edge.weights.artifact import COREML_LAYOUT
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_edge.weights.rounding import quantize_rows

_USUAL_LENGTH = 128  # the function that is run when none is asked for, where there is one
_TABLE_BLOCK_ROWS = 8192


def write(job: Job) -> Written:
    """Writes packages and table. The states are those of the saved files, rounded to float16 where that is declared."""
    job.options.require_only(job.format)
    lengths = io.model_lengths(job.checkpoint.spec.max_tokens)
    write_files(job.checkpoint, job.format, job.directory, lengths, job.step)
    return Written(
        states=evaluate(job.directory, job.rows, half=True),
        weights={"projections": job.format.removeprefix("coreml-"), "lengths": list(lengths)},
    )


def write_files(
    checkpoint: Checkpoint,
    format: str,
    directory: Path,
    lengths: Sequence[int],
    step: Callable[[], None] = lambda: None,
) -> None:
    """Writes packages with functions of the given lengths, and the table; `step` after each layer."""
    package, flexible = directory / COREML_LAYOUT.package, directory / COREML_LAYOUT.flexible
    precision, spec = PRECISIONS[format], checkpoint.spec
    weights = PackageWeights(data_folder(package) / WEIGHT_FOLDER)
    for index in range(spec.n_layers):
        store_layer(checkpoint, index, precision, weights)
        step()
    weights.add(FINAL_NORM, checkpoint.read(FINAL_NORM).astype(np.float16))
    for length in lengths:
        store_rotation(spec, length, weights)
    restart_names()
    graph = EncoderGraph(spec, precision, weights)
    functions = {io.function_name(length): graph.fixed(length) for length in lengths}
    any_length = {io.FLEXIBLE_FUNCTION: graph.flexible()}
    weights.close()
    usual = _USUAL_LENGTH if _USUAL_LENGTH in lengths else max(lengths)
    write_package(package, functions, weights, default=io.function_name(usual))
    _link(data_folder(package) / WEIGHT_FOLDER / WEIGHT_FILE, data_folder(flexible) / WEIGHT_FOLDER / WEIGHT_FILE)
    longest = io.flexible_limit(spec.max_tokens)
    write_package(flexible, any_length, weights, default=io.FLEXIBLE_FUNCTION, longest=longest)
    write_table(checkpoint, directory / COREML_LAYOUT.table, as_int8=format != "coreml-fp16")


def evaluate(directory: Path, rows: Sequence[TokenRow], *, half: bool = True) -> Iterator[list[np.ndarray]]:
    """The states `[T, D]` of all rows after the embedding, after each layer and after the final norm, from saved files.

    Each row goes through the function that the session would choose; rows of one function go side by side. With `half`
    all that a program declares to be float16 is rounded to it. Raises InputError for a row longer than any function.
    """
    spec = ModelSpec.from_directory(directory)
    table = open_table(directory, spec)
    program = MilProgram.open(directory / COREML_LAYOUT.package)
    lengths = io.FixedLengths(tuple(io.function_length(name) for name in program.functions))
    if too_long := [len(row) for row in rows if len(row) > lengths.limit]:
        raise InputError(f"a row of {max(too_long):,} tokens, the longest function takes {lengths.limit:,}: cut it")
    embedded = [table.rows(row.ids) for row in rows]
    yield embedded
    groups: dict[int, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[lengths.fitting(len(row))].append(i)
    names = [*(layer_output(index) for index in range(spec.n_layers)), io.TOKEN_STATES]
    passes = {
        length: program.values(
            io.function_name(length), [io.row_inputs(embedded[i], length) for i in members], names, half=half
        )
        for length, members in groups.items()
    }
    for _ in names:
        states: dict[int, np.ndarray] = {}
        for length, members in groups.items():
            _, values = next(passes[length])
            states |= {i: value[0, : len(rows[i])] for i, value in zip(members, values, strict=True)}
        yield [states[i] for i in range(len(rows))]


def open_table(directory: Path, spec: ModelSpec) -> EmbeddingTable:
    """The embedding table of a converted model."""
    return EmbeddingTable.open(directory / COREML_LAYOUT.table, (spec.vocab_size, spec.hidden_size))


def write_table(checkpoint: Checkpoint, path: Path, *, as_int8: bool) -> None:
    """Writes the embedding as safetensors, block by block: float16, or int8 codes and a float32 scale a row.

    float16 beside float16 projections, because then nothing is lost but what float16 loses. int8 beside all smaller
    ones: a row's scale makes its error a third of a percent, below that of any of these projections, at half the size.
    """
    n_rows, dim = checkpoint.spec.vocab_size, checkpoint.spec.hidden_size
    tensors = {CODES: ("I8", (n_rows, dim)), SCALES: ("F32", (n_rows,))} if as_int8 else {TABLE: ("F16", (n_rows, dim))}
    file = SafetensorsFile(path, tensors, {"format": "np"})
    for start in range(0, n_rows, _TABLE_BLOCK_ROWS):
        block = checkpoint.read_block(TABLE, start, min(start + _TABLE_BLOCK_ROWS, n_rows))
        if as_int8:
            codes, scales = quantize_rows(block)
            file.append(CODES, codes)
            file.append(SCALES, scales)
        else:
            file.append(TABLE, block.astype(np.float16))
    file.close()


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the disk has no such thing."""
    target.parent.mkdir(parents=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
