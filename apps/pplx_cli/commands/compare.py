"""`pplx-edge compare`: how far artifacts of one model stray from another one of it; the figures are `pplx_bench`'s."""

import argparse
from pathlib import Path
from typing import Any

from pplx_cli import COMMANDS
from pplx_cli.records import LineFormat, add_line_options, read_records
from pplx_cli.vector_writers import require_output
from pplx_edge.errors import InputError
from pplx_edge.registry import BACKENDS
from pplx_kit.options import MODEL_HELP, add_command, add_hub_options, offline, positive
from pplx_kit.terminal import say

_PROBES = "probe texts"


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "compare",
        COMMANDS["compare"],
        "pplx-edge compare nano@onnx-fp32 nano@onnx-int8\n"
        "pplx-edge compare nano@onnx-fp32 nano@onnx-int8 nano@mlx-q8 --texts lines.txt --beir task --plot card.svg",
        description="Compares each CAND with REF: size on disk, cosine of the float vectors, share of int8 codes that "
        "differ and the largest difference, share of binary bits that differ, and 1 − cosine of the states after each "
        "layer (the drift, from the manifest). All must have been made from the same weights; a warning says if they "
        "were not. An MLX model needs MLX on this machine; a Core ML model is evaluated in NumPy where it cannot run.",
    )
    model = f"{MODEL_HELP}. MODEL@FORMAT converts the model to that format and keeps the result in the cache"
    parser.add_argument("reference", metavar="REF", help=f"Model that the others are compared with: {model}.")
    parser.add_argument(
        "candidates", nargs="+", metavar="CAND", help="Models to compare with REF, named in the same way."
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        help="File of texts to compare vectors of, one per line (default: the few sentences that conversions are "
        "checked on). With 20 texts or more, each is also searched among the others, to report how many of its ten "
        "nearest are the same.",
    )
    add_line_options(parser)
    parser.add_argument(
        "--beir",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="Also report the retrieval quality (nDCG@10) of int8 and binary vectors on a task in BEIR layout "
        "(corpus.jsonl, queries.jsonl, qrels/test.tsv, or .gz), or the mean over a folder of tasks.",
    )
    parser.add_argument("--max-tokens", type=positive, default=512, metavar="N", help="Cut texts to this many tokens.")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="Write a picture: .svg, .png or .pdf.")
    parser.add_argument("--json", metavar="FILE", help="Append one JSON object per candidate to this .jsonl file.")
    add_hub_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pplx_bench import fidelity, machine
    from pplx_bench.retrieval.beir import task_folders
    from pplx_bench.workdir import append_lines
    from pplx_kit.host import versions

    if args.plot:
        fidelity.require_plotting(args.plot)  # said before anything is measured, not after
    json_file = _results(args.json)
    name, texts = _texts(args)
    sample = fidelity.Sample(
        name=name, texts=texts, tasks=task_folders(args.beir) if args.beir else [], max_tokens=args.max_tokens
    )
    reference, *candidates = fidelity.find_candidates(
        [args.reference, *args.candidates], revision=args.revision, offline=offline(args)
    )
    for line in fidelity.source_doubts(reference, candidates):
        say(f"warning: {line}")
    header = machine.run()
    header["versions"] |= versions(*(name for backend in BACKENDS.values() for name in backend.distributions))
    cards = fidelity.measure_cards(reference, candidates, sample, say)
    print(fidelity.fidelity_report(cards, name))
    if json_file:
        append_lines(json_file, fidelity.json_lines(cards, name, header))
    if args.plot:
        fidelity.draw(cards, name, args.plot)
    return 0


def _results(output: str | None) -> Path | None:
    """The file to append to. Raises InputError for one that cannot be."""
    if output is None:
        return None
    if not output.endswith(".jsonl"):
        raise InputError(f"{output}: results are JSON Lines; give a name that ends in .jsonl")
    return require_output(output)


def _texts(args: argparse.Namespace) -> tuple[str, list[str]]:
    """Return the name of the sample and its texts. Empty lines are left out, because they have no vector to compare."""
    if args.texts is None:
        from pplx_convert.parity import PROBE_TEXTS

        return _PROBES, list(PROBE_TEXTS)
    records = read_records([args.texts], LineFormat(jsonl=args.jsonl, field=args.field))
    found = [record.content for record in records]
    texts = [text for text in found if text]
    if len(texts) < len(found):
        say(f"{args.texts}: {len(found) - len(texts):,} empty of {len(found):,} lines left out")
    return Path(args.texts).name, texts
