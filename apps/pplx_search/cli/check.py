"""`pplx-search check`: whether every promise of the index holds."""

import argparse
from typing import Any

from pplx_kit.options import add_command
from pplx_kit.terminal import printable
from pplx_search.cli.opening import open_index, say


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "check",
        "read the whole index once and say what is wrong with it",
        "pplx-search check",
        description="Every passage has one vector and its words, the bits are the signs of the vectors, nothing is "
        "left over. Exit status: 0 all holds, 1 something does not, 2 error.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with open_index(args) as store:
        problems = store.check()
    for problem in problems:
        print(printable(problem))
    if not problems:
        say("sound")
    return 1 if problems else 0
