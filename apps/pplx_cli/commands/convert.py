"""`pplx-edge convert`: a checkpoint to an artifact of one's own."""

import argparse
from pathlib import Path
from typing import Any

from pplx_cli import COMMANDS
from pplx_edge.errors import InputError
from pplx_edge.preparation import conversion_bar
from pplx_edge.registry import all_formats
from pplx_edge.weights import hub
from pplx_edge.weights.artifact import is_artifact
from pplx_kit.options import MODEL_HELP, add_command, add_hub_options, offline, positive
from pplx_kit.terminal import human_bytes, say


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "convert",
        COMMANDS["convert"],
        "pplx-edge convert pplx-embed-v1-0.6b --to onnx-int8 --out models/0.6b-int8\n"
        "pplx-edge convert pplx-embed-v1-0.6b --to mlx-mixed --max-mb 450 --out models/0.6b-mixed",
        description="You rarely need this: `load` and `embed` convert a checkpoint when they first open it, and "
        "keep the result in the cache. Use it to choose the format, or to copy a converted model to another "
        "machine: every format can be written on Linux and on a Mac, if the extra of its backend is installed. "
        "native-* and onnx-* run on the CPU, mlx-* on the GPU and coreml-* on the Neural Engine of a Mac with Apple "
        "Silicon. int8, q8 and pal8 store 8 bits per weight, q4 and pal4 4 bits.\n\nThe result is compared with a "
        "float32 reference on a few sentences. If a figure is outside the limits of the format, or anything else "
        "fails, nothing is written. Limits, sizes and accuracy: docs/formats/models.md.",
    )
    parser.add_argument("source", metavar="SRC", help=MODEL_HELP)
    parser.add_argument(
        "--to", required=True, choices=all_formats(), metavar="FORMAT", help=f"Required: {', '.join(all_formats())}."
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="Required: directory to write. Missing parents are created."
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="Replace the converted model at DIR. Without this, and if DIR has other files, it is an error.",
    )
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        type=_override,
        metavar="PATTERN=TYPE",
        help="mlx, except mlx-fp16: Store the matrices whose names match PATTERN (with * and ?, for example "
        "'layers.0.*=q8') as TYPE: q8, q4, mxfp8, mxfp4, nvfp4 or bf16 (default: as the format says). May be repeated; "
        "the last match wins.",
    )
    parser.add_argument(
        "--no-equalization",
        action="store_true",
        help="Convert the weights as they are. Without this, channels with outliers are scaled down and their "
        "neighbors up, which changes no result in float32 and makes integers and float16 more accurate; only a "
        "model that was trained for the integers of its weights needs --no-equalization.",
    )
    parser.add_argument(
        "--max-mb",
        type=positive,
        metavar="MB",
        help="mlx-mixed: Size of all weights, in MB of 10⁶ bytes (default: halfway between 4 and 8 bits per weight).",
    )
    parser.add_argument(
        "--max-tokens",
        type=positive,
        metavar="N",
        help="coreml: Longest input that the model can read, in tokens, up to 2048 (default: 512).",
    )
    add_hub_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pplx_convert import ConvertOptions, convert

    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file; --out names a directory")
    if args.force and out.exists() and any(out.iterdir()) and not is_artifact(out):
        raise InputError(f"{out}: holds other things than a converted model; --force replaces only those")
    directory = hub.locate(args.source, revision=args.revision, offline=offline(args))
    name = hub.source_name(args.source)
    with conversion_bar(name or args.source) as show:
        options = ConvertOptions(overrides=dict(args.override), max_mb=args.max_mb, max_tokens=args.max_tokens)
        artifact = convert(
            directory,
            out,
            args.to,
            replace=args.force,
            source_name=name,
            equalize=not args.no_equalization,
            options=options,
            on_progress=show,
        )
    n_bytes = sum(entry["bytes"] for entry in artifact.files.values())
    say(f"{artifact.format}, {human_bytes(n_bytes)}; against the reference: {parity_line(artifact.parity)}")
    print(out)
    return 0


def _override(text: str) -> tuple[str, str]:
    """`(pattern, weight format)` of `layers.0.*=q8`, for argparse."""
    pattern, equals, weight_format = text.rpartition("=")
    if not equals or not pattern or not weight_format:
        raise argparse.ArgumentTypeError(f"expected PATTERN=TYPE, for example 'layers.0.*=q8'; got {text!r}")
    return pattern, weight_format


def parity_line(parity: Any) -> str:
    """The figures of a conversion's parity check in one line."""
    if not parity:
        return "not measured"
    return (
        f"cosine at least {parity['min_cosine']:.5f}, mean {parity['mean_cosine']:.5f}; "
        f"{parity['moved_share']:.1%} of int8 codes moved, by {parity['largest_step']} at most "
        f"({parity['n_vectors']} texts)"
    )
