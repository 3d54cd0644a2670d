"""`pplx-edge bench quality`: nDCG@10, recall and MRR of models and peers on tasks in BEIR layout.

Scores are measured for each precision and dimension, with and without the context of the document. Vectors are encoded
once as float32; codes of every precision and dimension follow from them.
"""

import argparse
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from pplx_bench import machine
from pplx_bench.options import comma_list, list_of, one_of, require_writable
from pplx_bench.panels import PICTURES
from pplx_bench.quality.groups import parse_groups
from pplx_bench.quality.measure import measure
from pplx_bench.quality.report import draw, report
from pplx_bench.quality.systems import MINILM, Opening, open_systems
from pplx_bench.results import Results
from pplx_bench.retrieval.beir import DEFAULT_SPLIT, read_task, task_folders
from pplx_bench.retrieval.encoders import CONTEXTS
from pplx_bench.retrieval.metrics import MAIN, MEASURES
from pplx_bench.retrieval.ranking import SCORED_AS
from pplx_edge.registry import BACKENDS
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import add_hub_options, offline, positive

_NATIVE = "native"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="FOLDER", help="A task, or a folder of tasks.")
    add("--tasks", type=comma_list, metavar="TASK,TASK", help="Only measure these tasks (default: those in --groups).")
    add("--split", default=DEFAULT_SPLIT, help="Split of tasks with qrels/SPLIT.tsv (default: %(default)s).")
    add(
        "--precisions",
        type=one_of(SCORED_AS),
        default=["int8"],
        metavar="P,P",
        help=f"Precisions of the vectors: {', '.join(SCORED_AS)} (default: int8).",
    )
    add("--dims", type=list_of(_dim), default=[None], metavar="N,N", help="Dimensions: native, or numbers.")
    add(
        "--context",
        type=one_of(CONTEXTS),
        default=["off"],
        metavar="C,C",
        help="off: encode a passage by itself; on: among the pieces of its document; title: after its title "
        "(default: off).",
    )
    add("--max-tokens", type=positive, default=512, metavar="N", help="Truncate texts to N tokens (default: 512).")
    add("--window", type=positive, metavar="N", help="Tokens of a document (default: as many as the model reads).")
    add("--threads", type=positive, metavar="N", help="Number of CPU threads (default: all cores).")
    _add_systems(parser.add_argument_group("systems"))
    _add_output(parser.add_argument_group("output"))


def run(args: Namespace) -> int:
    """Measure, and print the tables. Returns the exit status."""
    groups = parse_groups(args.groups)
    require_writable(args.json, ".jsonl")
    require_writable(args.plot, *PICTURES)
    names = args.tasks or list(dict.fromkeys(task for tasks in groups.values() for task in tasks)) or None
    tasks = [read_task(folder, args.split) for folder in task_folders(args.folders, names)]
    results = Results("quality", machine.run(), args.json)
    opening = Opening(
        precisions=args.precisions,
        dims=args.dims,
        max_tokens=args.max_tokens,
        window=args.window,
        backend=args.backend,
        revision=args.revision,
        offline=offline(args),
        threads=args.threads,
    )
    systems = open_systems(args.models, args.peers, opening)
    found = list(measure(tasks, systems, args.context, results, args.work and args.work / "vectors"))
    print(report(found, groups, args.metrics, args.baseline))
    if args.plot:
        peers = [system.label for system in systems[len(args.models) :]]
        draw(found, groups, args.metrics[0], peers, args.plot)
    return 0


def _dim(text: str) -> int | None:
    if text != _NATIVE and not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r}: {_NATIVE} or a whole number above 0")
    return None if text == _NATIVE else int(text)


def _add_systems(group: Any) -> None:
    add = group.add_argument
    add(
        "--models",
        type=comma_list,
        default=[BUILT_IN],
        metavar="M,M",
        help=f"Models to measure: MODEL or MODEL@FORMAT, e.g. nano@onnx-fp32 (default: {BUILT_IN}; '': none).",
    )
    add(
        "--peers",
        type=comma_list,
        default=[],
        metavar="P,P",
        help="Peers to measure: minilm, bm25, or sentence-transformers directories.",
    )
    add("--backend", default="auto", choices=["auto", *BACKENDS], help="Runtime of the models.")
    add_hub_options(group)


def _add_output(group: Any) -> None:
    add = group.add_argument
    add("--groups", action="append", default=[], metavar="G", help="Print averages: targets, or NAME=TASK,TASK.")
    add("--baseline", default=MINILM, metavar="PEER", help="Print averages as a share of a peer's (%(default)s).")
    add(
        "--metrics",
        type=one_of(MEASURES),
        default=[MAIN],
        metavar="M,M",
        help=f"Print these measures: {', '.join(MEASURES)} (default: {MAIN}).",
    )
    add("--json", type=Path, metavar="FILE", help="Append results, and do not measure those that are already there.")
    add("--plot", type=Path, metavar="FILE", help=f"Write a picture: {', '.join(PICTURES)}.")
    add("--work", type=Path, metavar="DIR", help="Keep vectors here, so that no text is encoded twice.")
