"""Core ML artifacts of tiny models with short functions, and sessions on them that compute with the NumPy evaluator."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pplx_convert.conversion import copy_text_files
from pplx_convert.coreml import converter as coreml_convert
from pplx_convert.coreml.mil_oracle import MilProgram
from pplx_convert.parity import ParityReport, probe_rows
from pplx_edge import layout
from pplx_edge.backends import coreml_io as io
from pplx_edge.backends.coreml_session import CoreMLSession, open_artifact, open_table, row_lengths
from pplx_edge.models.qwen3_numpy import layer_states
from pplx_edge.registry import ParityLimits
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.types import TokenRow
from pplx_edge.weights.artifact import Artifact, write_manifest
from pplx_edge.weights.checkpoint import Checkpoint

SHORT = (8, 16)
# What a sound float16 conversion of a tiny model keeps, and none of the planted faults does.
FP16_LIMITS = ParityLimits(min_cosine=0.9999, mean_cosine=0.99995, largest_step=4)


def converted(source: Path, out: Path, format: str = "coreml-fp16", lengths: Sequence[int] = SHORT) -> Artifact:
    """An artifact of a checkpoint with functions of the given lengths, without its parity figures."""
    out.mkdir(parents=True)
    copy_text_files(source, out)
    coreml_convert.write_files(Checkpoint.open(source), format, out, lengths)
    spec = ModelSpec.from_directory(source)
    coreml_convert.write_probe(Checkpoint.open(source), out, probe_rows(Tokenizer.open(source, spec), spec), lengths)
    weights = {"projections": format.removeprefix("coreml-"), "lengths": list(lengths)}
    write_manifest(out, artifact_format=format, source={}, weights=weights, parity={}, made_by="test")
    return Artifact.open(out)


def parity(source: Path, directory: Path, rows: list[TokenRow], *, half: bool = True) -> ParityReport:
    """The saved files against the reference."""
    reference = layer_states(Checkpoint.open(source), [row.ids for row in rows])
    return ParityReport.of_passes(reference, coreml_convert.evaluate(directory, rows, half=half))


class OraclePredict:
    """Predictions of a saved package by the NumPy evaluator; `lengths` records the functions that were asked for."""

    def __init__(self, artifact: Artifact, *, half: bool = False):
        self.half = half
        self.program = MilProgram.open(artifact.path(layout.COREML_PACKAGE))
        self.lengths: list[int] = []

    def __call__(self, length: int, inputs: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.lengths.append(length)
        return self.program.run(io.function_name(length), inputs, half=self.half)


def oracle_session(directory: Path, *, half: bool = False) -> tuple[CoreMLSession, OraclePredict]:
    """A session as `open_session` makes it, but for the prediction."""
    artifact = open_artifact(directory)
    spec = ModelSpec.from_directory(directory)
    predict = OraclePredict(artifact, half=half)
    return CoreMLSession(spec, open_table(artifact, spec), row_lengths(artifact), predict), predict
