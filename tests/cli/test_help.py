"""The layout of help, and that it shows the default of every option of both programs and of the benchmarks."""

import argparse
from collections.abc import Iterator

import pytest

import pplx_cli
import pplx_search.program
from pplx_cli.commands.bench import BENCHMARKS, open_benchmark
from pplx_edge.errors import MissingExtra
from pplx_kit.program import Parser

# What these options do without a value is what their help says they restrict or add.
WITHOUT_A_VALUE = ("Only ", "Also ", "Append ", "Write ", "Keep ", "Fail ", "Skip ", "Remove ", "Choose ", "Print ")


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from commands(command)


def help_of(parser: argparse.ArgumentParser) -> str:
    return " ".join(parser.format_help().split())


PROGRAMS = [
    *commands(pplx_cli.build_parser()),
    *commands(pplx_search.program.build_parser()),
]


@pytest.mark.parametrize("parser", PROGRAMS, ids=lambda parser: parser.prog)
def test_every_option_with_a_value_says_what_happens_without_it(parser: argparse.ArgumentParser):
    shown = help_of(parser)
    for action in parser._actions:
        if action.option_strings and action.nargs != 0 and not action.required:
            text = parser._get_formatter()._expand_help(action)
            assert "(default: " in text or text.startswith(WITHOUT_A_VALUE), action.option_strings
            assert " ".join(text.split()) in shown


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_of_benchmarks_shows_every_default(name: str):
    try:
        _, parser = open_benchmark(name)
    except MissingExtra as error:
        pytest.skip(str(error))
    for command in commands(parser):
        for action in command._actions:
            if action.option_strings and action.nargs != 0 and action.default not in (None, [], ""):
                assert "default" in command._get_formatter()._expand_help(action), action.option_strings


def test_a_default_is_appended_unless_the_help_names_one():
    parser = Parser(prog="x")
    parser.add_argument("--size", default=3, help="Number of rows.")
    parser.add_argument("--share", default="5%", help="Share.")
    parser.add_argument("--names", default=["a", "b"], help="Names.")
    parser.add_argument("--seconds", default=120.0, help="Seconds.")
    parser.add_argument("--threads", default=2, help="Threads (default: all cores).")
    parser.add_argument("--file", help="File.")
    parser.add_argument("--quiet", action="store_true", help="Be quiet.")
    text = help_of(parser)
    for line in (
        "--size SIZE Number of rows (default: 3).",
        "--share SHARE Share (default: 5%).",
        "--names NAMES Names (default: a,b).",
        "--seconds SECONDS Seconds (default: 120).",
        "--threads THREADS Threads (default: all cores).",
        "--file FILE File.",
        "--quiet Be quiet.",
    ):
        assert line in text


def test_long_lines_are_wrapped_but_names_and_examples_stay_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "40")
    example = "  x --formats onnx-int8,mlx-q8,coreml-int8 --out somewhere"
    parser = Parser(prog="x", description=f"{'word ' * 20}onnx-int8.", epilog=f"example:\n{example}")
    lines = parser.format_help().splitlines()
    assert example in lines
    assert all(len(line) <= 40 for line in lines if line != example)
    assert any(line.endswith("onnx-int8.") for line in lines)
