"""Benchmarks of several measurements, each a subcommand with its module of options and results, its table and picture.

The module of a measurement has `add_options(group)`, and `measure`, which its benchmark calls.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pplx_bench.options import require_writable
from pplx_bench.results import Result
from pplx_edge.errors import InputError


@dataclass(frozen=True, slots=True)
class Measurement:
    """A subcommand: summary, arguments of an example, module, table, picture, and whether results are acceptable."""

    summary: str
    example: str
    module: Any
    table: Callable[[Sequence[Result]], str]
    draw: Callable[[Sequence[Result], Path], None] | None = None
    passed: Callable[[Sequence[Result]], bool] = lambda results: True


def add_measurements(
    parser: ArgumentParser, measurements: Mapping[str, Measurement], json_help: str
) -> Iterator[tuple[str, ArgumentParser]]:
    """Add a required subcommand for each measurement, and yield its name and parser before its output options."""
    commands = parser.add_subparsers(dest="measurement", required=True, metavar="MEASUREMENT")
    for name, measurement in measurements.items():
        summary = measurement.summary
        sub = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {parser.prog} {name} {measurement.example}",
        )
        measurement.module.add_options(sub.add_argument_group(name))
        yield name, sub
        group = sub.add_argument_group("output")
        group.add_argument("--json", type=Path, metavar="FILE", help=json_help)
        if measurement.draw is not None:
            group.add_argument("--plot", type=Path, metavar="DIR", help="Write a picture into this folder, as .svg.")


def check_output(args: Namespace) -> None:
    """Raise InputError unless the files of `--json` and `--plot` can be written; called before anything is measured."""
    require_writable(args.json, ".jsonl")
    if (plot := getattr(args, "plot", None)) is not None and not plot.is_dir():
        raise InputError(f"{plot}: no such directory; create it first")


def show(measurement: Measurement, results: Sequence[Result], args: Namespace, stem: str) -> int:
    """Print the table, draw the picture, and return 0 if the results are acceptable, otherwise 1."""
    print(f"\n{measurement.table(results)}", flush=True)
    if measurement.draw is not None and args.plot is not None:
        measurement.draw(results, args.plot / f"{stem}-{args.measurement}.svg")
    return 0 if measurement.passed(results) else 1
