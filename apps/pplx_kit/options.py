"""Options that several commands share, and how they open a model."""

import argparse
from typing import Any

from pplx_edge.embedder import Embedder, load
from pplx_edge.registry import BACKENDS
from pplx_edge.types import COMPUTE_UNITS
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.warm import WarmEmbedder, find_warm

MODEL_HELP = f"{BUILT_IN}, a directory, an official name (pplx-embed-v1-0.6b) or a Hugging Face repository (org/name)"

REVISION_HELP = "Commit, tag or branch of a Hugging Face repository (default: the main branch)."


def add_command(commands: Any, name: str, summary: str, example: str, *, description: str = "") -> Any:
    """Add a command, with an example at the end of its help, and return its parser."""
    return commands.add_parser(
        name,
        help=summary,
        description=(summary[0].upper() + summary[1:] + ". " + description).strip(),
        epilog="example:\n" + "\n".join(f"  {line}" for line in example.splitlines()),
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a model and the backend that runs it."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", default=BUILT_IN, metavar="MODEL", help=f"{MODEL_HELP}.")
    group.add_argument(
        "--backend",
        default="auto",
        choices=["auto", *BACKENDS],
        help="Runtime to use (default: auto, the best for the model and this machine).",
    )
    group.add_argument(
        "--format",
        metavar="FORMAT",
        help="Format to convert a checkpoint to when it is first opened; the conversion is kept in the cache "
        f"(default: {_default_formats()}). A converted model has its format already.",
    )
    group.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="onnx, native, openvino, gguf: Number of CPU threads (default: all cores).",
    )
    group.add_argument(
        "--weights",
        metavar="TYPE",
        help="mlx: Type of a checkpoint's weights in memory: bf16, fp16, fp32, or quantized while loading to q8, q4, "
        "mxfp8, mxfp4 or nvfp4 (default: bf16; fp16 on an M1 or M2; q8 if memory is short).",
    )
    group.add_argument(
        "--memory-mb",
        type=positive,
        metavar="MB",
        help="native, mlx: Memory limit in MB for the model and its buffers together; batches are made small enough to "
        "fit (default: no limit).",
    )
    group.add_argument(
        "--compute-units",
        choices=COMPUTE_UNITS,
        help=f"coreml: Hardware to use; ane is the Neural Engine (default: {COMPUTE_UNITS[0]}).",
    )
    add_hub_options(group)


def add_hub_options(parser: Any) -> None:
    """Add the options for models on the hub."""
    parser.add_argument("--revision", metavar="REV", help=REVISION_HELP)
    parser.add_argument(
        "--offline", action="store_true", help="Never use the network. HF_HUB_OFFLINE=1 has the same effect."
    )


def _default_formats() -> str:
    return "; ".join(
        f"{'no conversion' if backend.opens_checkpoints else backend.default_format} on {backend.name}"
        for backend in BACKENDS.values()
    )


def open_model(args: argparse.Namespace) -> Embedder:
    """Return the embedder that the model options describe."""
    return load(
        args.model,
        backend=args.backend,
        artifact_format=args.format,
        revision=args.revision,
        offline=offline(args),
        threads=args.threads,
        weights=args.weights,
        memory_mb=args.memory_mb,
        compute_units=args.compute_units,
    )


def open_warm_model(args: argparse.Namespace) -> "Embedder | WarmEmbedder":
    """Return the embedder that the model options describe: over a running server that has it, or opened here.

    The options of a backend decide how a model is opened, so that they rule out a model that is open already.
    """
    if not (args.threads or args.weights or args.memory_mb or args.compute_units):
        resolving = {"backend": args.backend, "artifact_format": args.format, "revision": args.revision}
        if found := find_warm(args.model, offline=offline(args), **resolving):
            return found
    return open_model(args)


def offline(args: argparse.Namespace) -> bool | None:
    """Return True with `--offline`, and None otherwise, which leaves the choice to the environment."""
    return args.offline or None


def positive(text: str) -> int:
    """Parse a whole number above 0, for argparse."""
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return value


def natural(text: str) -> int:
    """Parse a whole number, 0 included, for argparse."""
    return 0 if text == "0" else positive(text)
