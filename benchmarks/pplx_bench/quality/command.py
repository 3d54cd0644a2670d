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
    add(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="A task in BEIR layout (corpus.jsonl, queries.jsonl, qrels.tsv; may be gzipped), or a folder of tasks.",
    )
    add(
        "--tasks",
        type=comma_list,
        metavar="TASK,TASK",
        help="Only measure these tasks (default: those of --groups; without --groups, all).",
    )
    add("--split", default=DEFAULT_SPLIT, help="Questions to use of tasks with several sets: those of qrels/SPLIT.tsv.")
    add(
        "--precisions",
        type=one_of(SCORED_AS),
        default=["int8"],
        metavar="P,P",
        help=f"Precisions of the vectors: {', '.join(SCORED_AS)} (default: int8).",
    )
    add(
        "--dims",
        type=list_of(_dim),
        default=[None],
        metavar="N,N",
        help="Dimensions of the vectors: native, or numbers (default: native).",
    )
    add(
        "--context",
        type=one_of(CONTEXTS),
        default=["off"],
        metavar="C,C",
        help="off: encode a passage by itself; on: with the other passages of its document (late chunking); title: "
        "after its title (default: off).",
    )
    add("--max-tokens", type=positive, default=512, metavar="N", help="Cut texts to N tokens.")
    add(
        "--window",
        type=positive,
        metavar="N",
        help="With --context on: the longest part of a document that is encoded in one pass, in tokens (default: "
        "what the model reads).",
    )
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
        help="Peers to measure as well: minilm, bm25, or sentence-transformers directories (default: none).",
    )
    add("--backend", default="auto", choices=["auto", *BACKENDS], help="Runtime of the models.")
    add_hub_options(group)


def _add_output(group: Any) -> None:
    add = group.add_argument
    add(
        "--groups",
        action="append",
        default=[],
        metavar="G",
        help="Also print the average of a group of tasks, NAME=TASK,TASK, or the literal word targets for the four "
        "groups of nano's card (default: none). May be repeated.",
    )
    add(
        "--baseline",
        default=MINILM,
        metavar="PEER",
        help="With --groups: also print each average as a share of that of this peer, if it is measured.",
    )
    add(
        "--metrics",
        type=one_of(MEASURES),
        default=[MAIN],
        metavar="M,M",
        help=f"Print these measures: {', '.join(MEASURES)} (default: {MAIN}).",
    )
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="Append each result to this .jsonl file, and skip what it already has for the same model files, task "
        "and options (default: keep none).",
    )
    add("--plot", type=Path, metavar="FILE", help=f"Write a picture: {', '.join(PICTURES)}.")
    add(
        "--work",
        type=Path,
        metavar="DIR",
        help="Keep vectors in this folder, so that the next run does not encode the same texts again (default: keep "
        "none).",
    )
