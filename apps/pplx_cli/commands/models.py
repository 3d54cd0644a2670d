"""`pplx-edge models`: what can be named, fetched, found and deleted."""

import argparse
import json
from typing import Any

from pplx_cli import COMMANDS
from pplx_edge.weights import hub
from pplx_kit.options import MODEL_HELP, REVISION_HELP, add_command, add_hub_options, offline
from pplx_kit.terminal import human_bytes, say

_REPOSITORY = "An official name (pplx-embed-v1-0.6b) or a Hugging Face repository (org/name)."


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "models",
        COMMANDS["models"],
        "pplx-edge models list\npplx-edge models pull pplx-embed-v1-0.6b\npplx-edge models rm pplx-embed-v1-0.6b",
        description=f"Models come from the Hugging Face hub and are kept in its cache. {hub.BUILT_IN} is part of the "
        "package: it needs no download and cannot be deleted.",
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    _add_list(actions)
    _add_pull(actions)
    path = add_command(
        actions, "path", "print the directory of a model on this machine", "ls $(pplx-edge models path nano)"
    )
    path.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    path.add_argument("--revision", metavar="REV", help=REVISION_HELP)
    path.set_defaults(run=run_path)
    remove = add_command(
        actions,
        "rm",
        "delete a downloaded model and what was converted from it",
        "pplx-edge models rm pplx-embed-v1-4b",
    )
    remove.add_argument("model", metavar="MODEL", help=_REPOSITORY)
    remove.set_defaults(run=run_remove)


def _add_list(actions: Any) -> None:
    parser = add_command(
        actions,
        "list",
        "list the built-in, official and downloaded models",
        "pplx-edge models list --json",
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object per line.")
    parser.set_defaults(run=run_list)


def _add_pull(actions: Any) -> None:
    parser = add_command(
        actions,
        "pull",
        "download a model from Hugging Face, or update it",
        "pplx-edge models pull pplx-embed-v1-0.6b\npplx-edge models pull pplx-embed-v1-0.6b --graph model_quantized",
        description="Prints its directory. Weights are downloaded as safetensors; code and pickles never are. A "
        "model is updated only by this command; when it is next opened, it is converted again.",
    )
    parser.add_argument("model", metavar="MODEL", help=_REPOSITORY)
    parser.add_argument(
        "--graph",
        metavar="NAME",
        help="Also download the ready-made graph onnx/NAME.onnx ('*' for all; default: none).",
    )
    add_hub_options(parser)
    parser.set_defaults(run=run_pull)


def run_list(args: argparse.Namespace) -> int:
    models = hub.available()
    if args.json:
        for model in models:
            directory = str(model.directory) if model.directory else None
            fields = {"name": model.name, "kind": model.kind, "directory": directory}
            print(json.dumps(fields | {"bytes": model.n_bytes, "revision": model.revision}))
        return 0
    width = max(len(model.name) for model in models)
    for model in models:
        here = human_bytes(model.n_bytes) if model.directory else "not downloaded"
        print(f"{model.name:{width}}  {model.kind:8}  {here:>11}  {(model.revision or '')[:12]}".rstrip())
    return 0


def run_pull(args: argparse.Namespace) -> int:
    print(hub.download(args.model, revision=args.revision, offline=offline(args), graphs=args.graph))
    return 0


def run_path(args: argparse.Namespace) -> int:
    print(hub.cached_path(args.model, revision=args.revision))
    return 0


def run_remove(args: argparse.Namespace) -> int:
    say(f"{human_bytes(hub.remove(args.model))} freed")
    return 0
