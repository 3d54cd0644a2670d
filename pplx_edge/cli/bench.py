"""`pplx-edge bench`: the benchmarks' own commands, when they are installed."""

import argparse
from importlib import import_module
from typing import Any

from pplx_edge.cli.options import add_command
from pplx_edge.errors import MissingExtra

BENCHMARKS = {
    "speed": "tokens a second beside other runtimes, on weights of the true 0.6b shape",
    "memory": "peak memory of converting, opening and encoding",
}


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "bench",
        "measure speed or memory on this machine",
        "pplx-edge bench speed --help",
        description="What follows the benchmark's name is its own: see its --help.",
    )
    parser.add_argument("benchmark", choices=BENCHMARKS, help="; ".join(f"{k}: {v}" for k, v in BENCHMARKS.items()))
    parser.add_argument("options", nargs=argparse.REMAINDER, help="options of the benchmark")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        module = import_module(f"pplx_bench.{args.benchmark}")
    except ModuleNotFoundError as error:
        raise MissingExtra(f"bench {args.benchmark} ({error.name} is not installed)", "bench") from error
    return module.main(args.options) or 0
