"""`pplx-edge bench quality`: how well models and their peers retrieve, on folders in BEIR layout.

nDCG@10, recall@10, recall@100 and MRR@10, for each precision and dimension, with and without the context of the
document. Vectors are computed once as float32; codes of every precision and dimension follow from them.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from pplx_bench import machine
from pplx_bench.beir import DEFAULT_SPLIT, task_folders
from pplx_bench.quality.contexts import CONTEXTS
from pplx_bench.quality.groups import parse_groups, tasks_of
from pplx_bench.quality.metrics import MEASURES
from pplx_bench.quality.opening import MINILM, PRECISIONS, Opening, open_systems
from pplx_bench.quality.options import comma_list, dims, one_of, require_writable
from pplx_bench.quality.plot import draw
from pplx_bench.quality.report import quality_report
from pplx_bench.quality.running import Run, run_all
from pplx_bench.quality.systems import Reading
from pplx_bench.workdir import say
from pplx_edge.backends import SESSIONS
from pplx_edge.weights.hub import BUILT_IN
from pplx_kit.options import add_hub_options, offline, positive

_RESULTS = (".jsonl",)
_PICTURES = (".svg", ".png", ".pdf")


def add_arguments(parser: ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="a task, or a folder of tasks")
    parser.add_argument("--tasks", type=comma_list, metavar="TASK,TASK", help="only these; default those of --groups")
    parser.add_argument("--split", default=DEFAULT_SPLIT, help="of tasks with qrels/SPLIT.tsv (default: %(default)s)")
    _add_systems(parser)
    parser.add_argument(
        "--precisions", type=one_of(PRECISIONS), default=["int8"], metavar="P,P", help=f"{', '.join(PRECISIONS)}"
    )
    parser.add_argument("--dims", type=dims, default=[None], metavar="N,N", help="native, or numbers; default native")
    parser.add_argument(
        "--context",
        type=one_of(CONTEXTS),
        default=["off"],
        metavar="C,C",
        help="off: a passage alone; on: among its document's pieces; title: after its title (default: off)",
    )
    parser.add_argument("--max-tokens", type=positive, default=512, metavar="N", help="cut of a text (default: 512)")
    parser.add_argument("--window", type=positive, metavar="N", help="tokens of a document; default what a model reads")
    parser.add_argument("--threads", type=positive, metavar="N", help="processor threads; default all")
    _add_output(parser)


def run(args: Namespace) -> int:
    """Measures, writes and prints; the exit status."""
    for path, suffixes in ((args.json, _RESULTS), (args.plot, _PICTURES)):
        if path is not None:
            require_writable(path, suffixes)
    groups = parse_groups(args.groups)
    folders = task_folders(args.folders, args.tasks or tasks_of(groups) or None)
    systems = open_systems(args.models, args.peers, _opening(args))
    header = machine.run()
    rows = run_all(
        Run(
            folders=folders,
            contexts=args.context,
            split=args.split,
            results=args.json,
            header=header,
        ),
        systems,
        say,
    )
    print(quality_report(rows, groups, args.metrics, args.baseline))
    if args.plot:
        draw(rows, groups, args.metrics[0], [system.label for system in systems[len(args.models) :]], args.plot)
    return 0


def _add_systems(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("systems")
    group.add_argument(
        "--models",
        type=comma_list,
        default=[BUILT_IN],
        metavar="M,M",
        help=f"what pplx-edge opens, MODEL or MODEL@FORMAT (nano@onnx-fp32); default {BUILT_IN}; '' for none",
    )
    group.add_argument(
        "--peers", type=comma_list, default=[], metavar="P,P", help="minilm, bm25, or sentence-transformers directories"
    )
    group.add_argument("--format", metavar="FORMAT", help="what checkpoints are converted to (default: onnx-int8)")
    group.add_argument("--backend", default="auto", choices=["auto", *SESSIONS], help="what our models run on")
    add_hub_options(group)


def _add_output(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--groups", action="append", default=[], metavar="G", help="targets, or NAME=TASK,TASK: averages"
    )
    group.add_argument("--baseline", default=MINILM, metavar="PEER", help="whose averages ratios are of (%(default)s)")
    group.add_argument(
        "--metrics", type=one_of(MEASURES), default=["ndcg@10"], metavar="M,M", help=f"printed: {', '.join(MEASURES)}"
    )
    group.add_argument(
        "--json", type=Path, metavar="FILE", help="append results; those already in it are not made again"
    )
    group.add_argument("--plot", type=Path, metavar="FILE", help=f"picture to write: {', '.join(_PICTURES)}")
    group.add_argument("--work", type=Path, metavar="DIR", help="keep vectors here, so that nothing is encoded twice")


def _opening(args: Namespace) -> Opening:
    return Opening(
        precisions=args.precisions,
        dims=args.dims,
        reading=Reading(args.max_tokens, args.window, args.work and args.work / "vectors"),
        backend=args.backend,
        format=args.format,
        revision=args.revision,
        offline=offline(args),
        threads=args.threads,
    )
