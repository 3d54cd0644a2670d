"""`pplx-edge info`: what a model on this machine is, without loading it."""

import argparse
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pplx_cli import COMMANDS
from pplx_cli.commands.convert import parity_line
from pplx_edge.backends import require_installed
from pplx_edge.errors import CheckpointError, EdgeError, InputError
from pplx_edge.registry import backend_of_format, entry
from pplx_edge.spec import ModelSpec
from pplx_edge.vectors.codes import MIN_DIM
from pplx_edge.weights import hub
from pplx_edge.weights.artifact import Artifact, is_artifact, ready_made
from pplx_edge.weights.checkpoint import Checkpoint, has_weights
from pplx_kit.options import MODEL_HELP, REVISION_HELP, add_command
from pplx_kit.terminal import human_bytes


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "info",
        COMMANDS["info"],
        "pplx-edge info nano\npplx-edge info models/nano-coreml-int8 --evaluate",
        description="Downloads nothing: the model must be on this machine. Reads only the headers of its files, except "
        "with --evaluate. Parity figures say how close a converted model was to the float32 reference.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--revision", metavar="REV", help=REVISION_HELP)
    parser.add_argument(
        "--evaluate",
        action="store_true",
        help="Compute a Core ML model in NumPy on a few sentences, on any machine, and report two errors: that of "
        "rounding to float16, and that against the checkpoint.",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    directory = hub.cached_path(args.model, revision=args.revision)
    facts = describe(args.model, directory)
    if args.evaluate:
        facts["evaluation"] = evaluate(directory)
    if args.json:
        print(json.dumps(facts))
    else:
        print("\n".join(f"{name:11} {value}" for name, value in _lines(facts)))
    return 0


def describe(name: str, directory: Path) -> dict[str, Any]:
    """Everything that is known of the model in a directory, as plain values."""
    artifact = Artifact.open(directory) if is_artifact(directory) else None
    spec = ModelSpec.from_directory(directory)
    found = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.suffix not in (".py", ".pyc")]
    files = {str(path.relative_to(directory)): path.stat().st_size for path in found}
    sizes = {key: value for key, value in asdict(spec).items() if key != "name"}
    return {
        "name": name,
        "directory": str(directory),
        "format": artifact.format if artifact else _source_format(directory, spec),
        "revision": artifact.revision if artifact else None,
        "spec": sizes | {"dim": spec.dim, "n_parameters": spec.n_parameters},
        "source": dict(artifact.source) if artifact else None,
        "equalization": dict(artifact.equalization) if artifact else None,
        "parity": dict(artifact.parity) if artifact else None,
        "files": files,
        "bytes": sum(files.values()),
    }


def evaluate(directory: Path) -> dict[str, Any]:
    """Figures of a Core ML artifact's program, computed from its saved files wherever this runs.

    `rounding` compares it with float16 rounding to it without; `reference` with the checkpoint that it was made from,
    None when that is not on this machine. Raises InputError for what is no Core ML artifact.
    """
    artifact = Artifact.open(directory) if is_artifact(directory) else None
    backend = backend_of_format(artifact.format) if artifact else None
    if not artifact or not backend or not backend.evaluator:
        raise InputError(f"{directory}: not a Core ML model; --evaluate computes those, others run as they are")
    require_installed(backend)
    return entry(backend.evaluator)(directory, _source_directory(artifact.source))


def _source_directory(source: Mapping[str, Any]) -> Path | None:
    """The checkpoint that an artifact was made from, if it is on this machine."""
    with suppress(EdgeError):
        return hub.cached_path(str(source.get("name")), revision=source.get("revision"))
    return None


def _source_format(directory: Path, spec: ModelSpec) -> str:
    """Return `safetensors`, or the backend that opens ready-made files. Raises CheckpointError if there are neither."""
    try:
        Checkpoint.open(directory, spec)
    except CheckpointError:
        if not has_weights(directory) and (backend := ready_made(directory)):
            return backend.name
        raise
    return "safetensors"


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    spec = facts["spec"]
    heads = f"{spec['n_heads']} heads of {spec['head_dim']} ({spec['n_kv_heads']} key/value)"
    revision = f" (revision {facts['revision']})" if facts["revision"] else ""
    lines = [
        ("model", facts["name"]),
        ("directory", facts["directory"]),
        ("format", f"{facts['format']}{revision}, {human_bytes(facts['bytes'])}"),
        (
            "encoder",
            f"{spec['n_layers']} layers, hidden {spec['hidden_size']}, inner {spec['intermediate_size']}, {heads}",
        ),
        ("parameters", f"{spec['n_parameters']:,}, vocabulary {spec['vocab_size']:,}"),
        ("vectors", f"{spec['dim']} components, cut to {min(MIN_DIM, spec['dim'])} or more with --dim"),
        ("texts", f"up to {spec['max_tokens']:,} tokens" + (", chunks in context" if spec["contextual"] else "")),
    ]
    if facts["source"]:
        revision = facts["source"].get("revision")
        lines.append(("source", str(facts["source"].get("name")) + (f" at {revision}" if revision else "")))
        lines += _equalization_lines(facts["equalization"])
        lines.append(("parity", parity_line(facts["parity"])))
    if evaluation := facts.get("evaluation"):
        lines.append(("evaluated", f"float16 against float32: {parity_line(evaluation['rounding'])}"))
        beside = evaluation["reference"]
        told = parity_line(beside) if beside else "its checkpoint is not on this machine"
        lines.append(("", f"against the reference: {told}"))
    return lines + [("file", f"{human_bytes(size):>10}  {name}") for name, size in facts["files"].items()]


def _equalization_lines(equalization: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a line for each place where scales were folded, and one for a divided residual stream."""
    if not equalization:
        return [("equalized", "no")]
    places = {place: entry for place, entry in equalization.items() if isinstance(entry, Mapping)}
    lines = [
        f"{place}: {entry['folded']:,} of {entry['channels']:,} channels, by 2^{entry['exponents'][0]} to "
        f"2^{entry['exponents'][1]}"
        for place, entry in places.items()
    ]
    if (divisor := equalization.get("residual_divisor", 1)) > 1:
        lines.append(f"residual stream divided by {divisor:,}")
    return [("equalized" if i == 0 else "", line) for i, line in enumerate(lines)]
