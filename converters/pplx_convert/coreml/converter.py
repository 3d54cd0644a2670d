"""Convert a checkpoint to Core ML packages and an embedding table, and evaluate saved packages layer by layer.

`model.mlpackage` contains functions of fixed lengths with shared weights, because the Neural Engine requires fixed
shapes: two for each length, with the two forms of attention described in `graph`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from pplx_convert.conversion import Job, Written
from pplx_convert.coreml.graph import FINAL_NORM, EncoderGraph, layer_output, store_layer, store_rotation
from pplx_convert.coreml.mil import restart_names
from pplx_convert.coreml.mil_oracle import MilProgram
from pplx_convert.coreml.package import WEIGHT_FOLDER, PackageWeights, data_folder, write_package
from pplx_convert.coreml.weights import WEIGHT_FORMATS
from pplx_edge import layout
from pplx_edge.backends import coreml_io as io
from pplx_edge.backends.coreml_table import CODES, SCALES, TABLE, EmbeddingTable
from pplx_edge.errors import InputError
from pplx_edge.models.qwen3_numpy import encode_rows
from pplx_edge.spec import ModelSpec
from pplx_edge.types import TokenRow
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_edge.weights.rounding import quantize_rows
from pplx_edge.weights.safetensors import SafetensorsWriter

_USUAL_LENGTH = 128  # the length of the default function, if there is one of this length


def write(job: Job) -> Written:
    """Write the package and the table, and return the result.

    The states are computed from the saved files, with rounding to float16 wherever the program declares it.
    """
    job.options.require_only(job.artifact_format, "max_tokens")
    lengths = io.model_lengths(job.checkpoint.spec.max_tokens, job.options.max_tokens or io.USUAL_LIMIT)
    divided = job.checkpoint.divided()
    write_files(divided, job.artifact_format, job.directory, lengths, job.step, residual=divided.residual)
    write_probe(job.checkpoint, job.directory, job.rows, lengths)
    return Written(
        states=evaluate(job.directory, job.rows, half=True),
        weights={"projections": job.artifact_format.removeprefix("coreml-"), "lengths": list(lengths)},
        residual=divided.residual,
    )


def write_files(
    checkpoint: Checkpoint,
    artifact_format: str,
    directory: Path,
    lengths: Sequence[int],
    step: Callable[[], None] = lambda: None,
    *,
    residual: int = 0,
) -> None:
    """Write the package, with functions of the given lengths, and the table. Calls `step` after each layer.

    `residual` is the exponent by which the residual stream of the checkpoint is divided.
    """
    package = directory / layout.COREML_PACKAGE
    weight_format, spec = WEIGHT_FORMATS[artifact_format], checkpoint.spec
    weights = PackageWeights(data_folder(package) / WEIGHT_FOLDER)
    for index in range(spec.n_layers):
        store_layer(checkpoint, index, weight_format, weights)
        step()
    weights.add(FINAL_NORM, checkpoint.read(FINAL_NORM).astype(np.float16))
    for length in lengths:
        store_rotation(spec, length, weights)
    restart_names()
    graph = EncoderGraph(spec, weight_format, weights, residual)
    functions = {io.function_name(length, form): graph.fixed(length, form) for form in io.FORMS for length in lengths}
    weights.close()
    usual = _USUAL_LENGTH if _USUAL_LENGTH in lengths else max(lengths)
    write_package(package, functions, weights, default=io.function_name(usual))
    write_table(checkpoint, directory / layout.COREML_TABLE, as_int8=artifact_format != "coreml-fp16")


def write_probe(checkpoint: Checkpoint, directory: Path, rows: Sequence[TokenRow], lengths: Sequence[int]) -> None:
    """Write what a session compares each function with before its first use: the reference's vectors of a few tokens.

    The tokens are those of the rows, one after the other. The reference runs on the checkpoint in float32.
    """
    ids = np.concatenate([row.ids for row in rows])[: io.probe_tokens(max(lengths))].astype(np.uint32)
    counts = sorted({min(io.probe_tokens(length), len(ids)) for length in lengths})
    means = [states.mean(axis=0, dtype=np.float32) for states in encode_rows(checkpoint, [ids[:n] for n in counts])]
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {io.PROBE_IDS: ("U32", ids.shape)}
    tensors |= {io.probe_mean(n): ("F32", mean.shape) for n, mean in zip(counts, means, strict=True)}
    with SafetensorsWriter(directory / layout.COREML_PROBE, tensors, {"format": "np"}) as file:
        file.append(io.PROBE_IDS, ids)
        for n, mean in zip(counts, means, strict=True):
            file.append(io.probe_mean(n), mean)


def evaluate(directory: Path, rows: Sequence[TokenRow], *, half: bool = True) -> Iterator[list[np.ndarray]]:
    """Yield the states `[T, D]` of all rows after the embedding, after each layer and after the final norm.

    The states are computed from the saved files. Each row uses the function that the session would choose; rows that
    use the same function are evaluated together. `half` rounds every value that the program declares as float16.
    Raises InputError for a row longer than the longest function.
    """
    spec = ModelSpec.from_directory(directory)
    table = open_table(directory, spec)
    program = MilProgram.open(directory / layout.COREML_PACKAGE)
    lengths = io.FixedLengths(io.function_lengths(program.functions))
    if too_long := [len(row) for row in rows if len(row) > lengths.limit]:
        raise InputError(f"a row has {max(too_long):,} tokens, limit {lengths.limit:,} (the longest function)")
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
    """Open the embedding table of a converted model."""
    return EmbeddingTable.open(directory / layout.COREML_TABLE, (spec.vocab_size, spec.hidden_size))


def write_table(checkpoint: Checkpoint, path: Path, *, as_int8: bool) -> None:
    """Write the embedding table as safetensors, block by block: float16, or int8 codes with a float32 scale per row.

    With float16 projections, a float16 table avoids any further loss. With smaller projections, int8 halves the size of
    the table; the scale per row limits the error to a third of a percent, less than that of any of these projections.
    """
    n_rows, dim = checkpoint.spec.vocab_size, checkpoint.spec.hidden_size
    tensors = {CODES: ("I8", (n_rows, dim)), SCALES: ("F32", (n_rows,))} if as_int8 else {TABLE: ("F16", (n_rows, dim))}
    with SafetensorsWriter(path, tensors, {"format": "np"}) as file:
        for block in checkpoint.row_blocks(TABLE):
            if as_int8:
                codes, scales = quantize_rows(block)
                file.append(CODES, codes)
                file.append(SCALES, scales)
            else:
                file.append(TABLE, block.astype(np.float16))
