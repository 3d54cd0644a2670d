"""`pplx-edge bench`: hands over to a benchmark, which has options of its own."""

import argparse
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from pplx_cli import COMMANDS
from pplx_edge.errors import MissingExtra
from pplx_kit.options import add_command
from pplx_kit.program import Parser


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark: its module with `add_arguments` and `run`, what it measures, an example, and the extra it needs."""

    module: str
    summary: str
    example: str
    extra: str = "bench"


BENCHMARKS = {
    "speed": Benchmark(
        "pplx_bench.speed.command",
        "measure tokens per second next to other runtimes, with random weights in the sizes of a real model",
        "--rows 1x16,32x128 --peers ours,torch-bf16",
    ),
    "variants": Benchmark(
        "pplx_bench.variants.command",
        "measure every format and peer that this machine can run, and recommend one for each use",
        "nano --data data/bench --tasks squad-dev --out variants",
        "quality",
    ),
    "memory": Benchmark(
        "pplx_bench.memory.command",
        "measure the peak memory of converting, opening and encoding with random weights, in onnx-int8",
        "--shape 0.6b",
    ),
    "convert": Benchmark(
        "pplx_bench.convert.command",
        "convert a model to every format, and report seconds, peak memory, size, and how close its vectors stay",
        "--model nano --formats onnx-int8,mlx-q8,coreml-int8",
    ),
    "rough": Benchmark(
        "pplx_bench.rough.command",
        "add outliers to the weights of a model, and convert it with and without equalization",
        "data/bench/squad-dev --formats onnx-int8,coreml-fp16",
        "quality",
    ),
    "quality": Benchmark(
        "pplx_bench.quality.command",
        "measure the retrieval quality (nDCG@10) of models on folders in BEIR layout, if you like next to BM25 and "
        "MiniLM",
        "data/bench --tasks squad-dev --peers minilm,bm25 --precisions float32,int8",
        "quality",
    ),
    "stream": Benchmark(
        "pplx_bench.stream.command",
        "measure encode_stream: memory and speed, closeness to one pass, retrieval quality, many small documents",
        "fidelity data/bench --json stream.jsonl",
        "quality",
    ),
    "search": Benchmark(
        "pplx_bench.search.command",
        "measure pplx-search: its index at scale next to other stores, and the whole program on files",
        "retrieval data/bench --tasks squad-dev",
        "search",
    ),
    "serve": Benchmark(
        "pplx_bench.serve.command",
        "measure the embeddings server under load: throughput, latency and memory, next to the library alone",
        "--model nano --ragged-seconds 60",
        "serve",
    ),
    "scale": Benchmark(
        "pplx_bench.scale.command",
        "measure corpora on Ray Data under failures and by memory, searches in LanceDB, and what a corpus costs",
        "cost --passages 1e9 --cpu 1450",
        "scale,lance,search",
    ),
    "mteb": Benchmark(
        "pplx_bench.mteb.command",
        "run tasks and benchmarks of mteb and ConTEB, which are downloaded from the hub",
        "--model pplx-embed-v1-0.6b --tasks MIRACLRetrieval --languages deu",
        "mteb",
    ),
    "plot": Benchmark(
        "pplx_bench.speed.plot",
        "draw the results that `bench speed --json` wrote: tokens per second, a panel for each row",
        "speed.jsonl --out speed.svg",
    ),
}


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "bench",
        COMMANDS["bench"],
        "pplx-edge bench speed --rows 1x16,32x128",
        description="Each benchmark has its own options: pplx-edge bench speed --help",
    )
    summaries = "; ".join(f"{name}: {each.summary}" for name, each in BENCHMARKS.items())
    parser.add_argument("benchmark", choices=BENCHMARKS, help=summaries)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="Options of the benchmark.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    module, parser = open_benchmark(args.benchmark)
    return module.run(parser.parse_args(args.options))


def open_benchmark(name: str) -> tuple[Any, Parser]:
    """Return the module of a benchmark and the parser of its options. Raises MissingExtra if a library is missing."""
    benchmark = BENCHMARKS[name]
    try:
        module = import_module(benchmark.module)
    except ModuleNotFoundError as error:
        raise MissingExtra(f"bench {name} ({error.name} is not installed)", benchmark.extra) from error
    program = f"pplx-edge bench {name}"
    parser = Parser(
        prog=program,
        description=f"{benchmark.summary[0].upper()}{benchmark.summary[1:]}.",
        epilog=f"example:\n  {program} {benchmark.example}".rstrip(),
    )
    module.add_arguments(parser)
    return module, parser
