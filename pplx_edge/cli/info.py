"""`pplx-edge info`: what a model on this machine is, without loading it."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pplx_edge import hub
from pplx_edge.artifact import Artifact, is_artifact, ready_graphs
from pplx_edge.checkpoint import Checkpoint, has_weights
from pplx_edge.cli.convert import parity_line
from pplx_edge.cli.options import MODEL_HELP, add_command
from pplx_edge.cli.terminal import human_bytes
from pplx_edge.errors import CheckpointError
from pplx_edge.quantize import MIN_DIM
from pplx_edge.spec import ModelSpec


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "info",
        "say what a model is: sizes, format, files, parity",
        "pplx-edge info nano",
        description="Reads headers only, and only what is on this machine.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--revision", metavar="REV", help="commit, tag or branch of a hub repository")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    facts = describe(args.model, hub.path(args.model, revision=args.revision))
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
        "spec": sizes | {"dim": spec.dim, "n_parameters": spec.n_parameters},
        "source": dict(artifact.source) if artifact else None,
        "parity": dict(artifact.parity) if artifact else None,
        "files": files,
        "bytes": sum(files.values()),
    }


def _source_format(directory: Path, spec: ModelSpec) -> str:
    """`safetensors`, or `onnx` for a directory of ready graphs. Raises CheckpointError when it is neither."""
    try:
        Checkpoint.open(directory, spec)
    except CheckpointError:
        if ready_graphs(directory) and not has_weights(directory):
            return "onnx"
        raise
    return "safetensors"


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    spec = facts["spec"]
    heads = f"{spec['n_heads']} heads of {spec['head_dim']} ({spec['n_kv_heads']} key/value)"
    lines = [
        ("model", facts["name"]),
        ("directory", facts["directory"]),
        ("format", f"{facts['format']}, {human_bytes(facts['bytes'])}"),
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
        lines.append(("parity", parity_line(facts["parity"])))
    return lines + [("file", f"{human_bytes(size):>10}  {name}") for name, size in facts["files"].items()]
