"""`pplx-edge bench`: hands over to a benchmark, which has options of its own."""

import argparse
from importlib import import_module
from typing import Any

from pplx_edge.errors import MissingExtra
from pplx_kit.options import Parser, add_command

BENCHMARKS = {
    "speed": "measure tokens per second next to other runtimes, with weights of the true 0.6b shape",
    "memory": "measure peak memory of converting, opening and encoding",
    "convert": "convert a model to every format and report seconds, peak memory, size and parity",
    "quality": "measure retrieval (nDCG@10 and others) on folders in BEIR layout, next to BM25 and MiniLM",
    "stream": "measure streaming late chunking: memory, fidelity, retrieval and many small documents",
    "search": "measure pplx-search: its index at scale next to others, and the whole app on real files",
    "mteb": "run tasks and benchmarks of mteb and ConTEB, which are downloaded from the hub",
    "plot": "plot the results that speed wrote with --json",
}
EXAMPLES = {
    "speed": "",
    "memory": " --shape 0.6b",
    "convert": " --model nano --formats onnx-int8,mlx-q8,coreml-int8",
    "quality": " data/bench --tasks squad-dev --peers minilm,bm25 --precisions float32,int8",
    "stream": " data/bench --what fidelity,quality --json stream.jsonl --plot .",
    "search": " data/bench --what scale,retrieval",
    "mteb": " --model pplx-embed-v1-0.6b --tasks MIRACLRetrieval --languages deu",
    "plot": " speed.jsonl --out speed.svg",
}
EXTRAS = {"quality": "quality", "stream": "quality", "search": "search", "mteb": "mteb"}  # of the others: bench


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "bench",
        "measure speed, memory or retrieval quality on this machine",
        "pplx-edge bench speed --rows 1x16,32x128",
        description="Each benchmark has its own options: pplx-edge bench speed --help",
    )
    parser.add_argument("benchmark", choices=BENCHMARKS, help="; ".join(f"{k}: {v}" for k, v in BENCHMARKS.items()))
    parser.add_argument("options", nargs=argparse.REMAINDER, help="Options of the benchmark.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        benchmark = import_module(f"pplx_bench.{args.benchmark}")
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(args.benchmark, "bench")
        raise MissingExtra(f"bench {args.benchmark} ({error.name} is not installed)", extra) from error
    name = f"pplx-edge bench {args.benchmark}"
    summary = BENCHMARKS[args.benchmark]
    parser = Parser(
        prog=name,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"example: {name}{EXAMPLES[args.benchmark]}",
    )
    benchmark.add_arguments(parser)
    return benchmark.run(parser.parse_args(args.options))
