"""`pplx-edge verify`: whether a model's files are whole, and whether official weights give the published vectors."""

import argparse
from pathlib import Path
from typing import Any

from pplx_cli import COMMANDS
from pplx_cli.published_vectors import CODE_TOLERANCE, GOLDEN, deviations, texts
from pplx_edge.embedder import load
from pplx_edge.errors import InputError, ModelError, ModelNotFound
from pplx_edge.registry import EXACT_FORMAT
from pplx_edge.spec import ModelSpec
from pplx_edge.text.tokenization import Tokenizer
from pplx_edge.weights import hub
from pplx_edge.weights.artifact import Artifact, is_artifact
from pplx_edge.weights.checkpoint import Checkpoint
from pplx_kit.options import MODEL_HELP, REVISION_HELP, add_command, positive


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "verify",
        COMMANDS["verify"],
        "pplx-edge verify pplx-embed-v1-0.6b\npplx-edge verify my-copy/ --as pplx-embed-v1-0.6b",
        description="Downloads nothing: the model must be on this machine, and every byte of it is read. For a "
        "converted model, compares all files with the hashes in its manifest. For a checkpoint, checks the names, "
        "shapes and values of the weights. For pplx-embed-v1-0.6b, also compares vectors of two texts with those "
        f"that text-embeddings-inference publishes, which come with this package (tolerance: {CODE_TOLERANCE} steps "
        "of an int8 code). Exit status: 0 no problem found, 2 error.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--as",
        dest="known_as",
        metavar="NAME",
        help="Name of the official model that the directory is a copy of, to compare its vectors (default: by the "
        "name of the model).",
    )
    parser.add_argument("--revision", metavar="REV", help=REVISION_HELP)
    parser.add_argument("--threads", type=positive, metavar="N", help="Number of CPU threads (default: all cores).")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    directory = hub.cached_path(args.model, revision=args.revision)
    spec = ModelSpec.from_directory(directory)
    if is_artifact(directory):
        _verify_artifact(Artifact.open(directory))
    else:
        _verify_checkpoint(Checkpoint.open(directory, spec))
    Tokenizer.open(directory, spec)
    print("ok: the tokenizer opens and fits the vocabulary")
    _verify_vectors(args, directory)
    return 0


def _verify_artifact(artifact: Artifact) -> None:
    artifact.verify()
    print(f"ok: {len(artifact.files)} files of this {artifact.format} artifact are as its manifest says (SHA-256)")


def _verify_checkpoint(checkpoint: Checkpoint) -> None:
    names = list(checkpoint.spec.tensor_shapes())
    print(f"ok: config.json is supported, {len(names)} tensors have the names, shapes and sizes it implies")
    for name in names:
        checkpoint.read(name)
    print(f"ok: all {checkpoint.spec.n_parameters:,} weights are finite numbers")


def _verify_vectors(args: argparse.Namespace, directory: Path) -> None:
    """Holds the vectors against published ones, or says that there are none to hold them against."""
    name = _official_name(args)
    facts = GOLDEN.get(name, ())
    if not facts:
        known = ", ".join(GOLDEN)
        print(f"not checked: no published vectors are known for {name or 'this model'} (they are for {known})")
        return
    if is_artifact(directory) and Artifact.open(directory).format != EXACT_FORMAT:
        print(f"not checked: published vectors hold for full-precision weights; verify {name} itself")
        return
    with load(directory, artifact_format=EXACT_FORMAT, offline=True, threads=args.threads) as model:
        vectors = model.encode(texts(facts))
    for fact, codes in zip(facts, vectors, strict=True):
        if found := deviations(fact, codes):
            raise ModelError(f"{directory}: not the vectors of {name} for {fact.text!r}: {'; '.join(found)}")
        n_codes = len(fact.first_codes)
        print(
            f"ok: {fact.text!r} gives the published vector (first {n_codes} codes within {CODE_TOLERANCE}, sums, range)"
        )


def _official_name(args: argparse.Namespace) -> str:
    """The official repository whose weights these are, as far as their name tells; empty when it does not."""
    if args.known_as:
        name = hub.repository_of(args.known_as)
        if name not in hub.OFFICIAL.values():
            raise InputError(f"--as {args.known_as}: not an official model: choose one of {', '.join(hub.OFFICIAL)}")
        return name
    directory = Path(args.model)
    if is_artifact(directory):
        return str(Artifact.open(directory).source.get("name", ""))
    try:
        return "" if directory.is_dir() else hub.repository_of(args.model)
    except ModelNotFound:
        return ""
