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
        description="The result is checked against a float32 reference; a conversion that fails leaves nothing behind.",
    )
    parser.add_argument("source", metavar="SRC", help=MODEL_HELP)
    parser.add_argument("--to", required=True, choices=all_formats(), metavar="FORMAT", help=", ".join(all_formats()))
    parser.add_argument("--out", required=True, metavar="DIR", help="Directory to write. Missing parents are created.")
    parser.add_argument("--force", action="store_true", help="Replace a converted model that exists at DIR.")
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        type=_override,
        metavar="PATTERN=Q",
        help="mlx: Store matrices whose path matches PATTERN in format Q (q8, q4, bf16, …). The last match wins.",
    )
    parser.add_argument(
        "--no-equalization",
        action="store_true",
        help="Convert the weights as they are, without folding the scales of outlier channels into their neighbors.",
    )
    parser.add_argument("--max-mb", type=positive, metavar="MB", help="mlx-mixed: Budget for all weights.")
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", help="coreml: Longest input in tokens, up to 2048 (default: 512)."
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
        raise argparse.ArgumentTypeError(f"{text!r} is not PATTERN=Q, 'layers.0.*=q8' for one")
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
