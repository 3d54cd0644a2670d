"""Evaluate a saved Core ML program on the probe texts, on any machine, to measure the loss of weights and float16."""

from pathlib import Path
from typing import Any

from pplx_convert.coreml.converter import evaluate
from pplx_convert.parity import ParityReport, probe_rows
from pplx_edge.backends.coreml_session import row_lengths
from pplx_edge.models.qwen3_numpy import layer_states
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.weights.artifact import Artifact, sha256
from pplx_edge.weights.checkpoint import Checkpoint


def evaluate_program(directory: Path, source: Path | None) -> dict[str, Any]:
    """Return two parity reports as dicts, `rounding` and `reference`.

    `rounding` compares the program with float16 rounding to the program without it. `reference` compares the program
    with rounding to the checkpoint in `source`; it is None if there is no source, or if the program was made from
    different weights.
    """
    spec = ModelSpec.from_directory(directory)
    artifact = Artifact.open(directory)
    rows = probe_rows(Tokenizer.open(directory, spec), spec, row_lengths(artifact).limit)
    exact = list(evaluate(directory, rows, half=False))
    rounded = list(evaluate(directory, rows, half=True))
    report: dict[str, Any] = {"rounding": ParityReport.of_passes(exact, rounded).as_dict(), "reference": None}
    if source is not None and _is_source(artifact, source):
        reference = layer_states(Checkpoint.open(source), [row.ids for row in rows])
        report["reference"] = ParityReport.of_passes(reference, rounded).as_dict()
    return report


def _is_source(artifact: Artifact, source: Path) -> bool:
    hashes = artifact.source.get("sha256")
    found = {path.name: sha256(path) for path in Checkpoint.open(source).files}
    return hashes == found
