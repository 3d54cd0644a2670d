"""`pplx-search check`: verify the integrity of the index."""

import argparse
from typing import Any

from pplx_kit.options import add_command
from pplx_kit.terminal import printable
from pplx_search.access import open_index
from pplx_search.console import say
from pplx_search.program import COMMANDS


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "check",
        COMMANDS["check"],
        "pplx-search check",
        description="Checks that the database is not damaged, that every passage has one vector and an entry in the "
        "full-text index, that the copy of the vectors' signs matches the vectors, and that no row belongs to a "
        "deleted one. Prints a line per problem. An index with problems cannot be repaired: delete its folder and add "
        "your folders again. `doctor` makes a shorter check, of the installation too. Exit status: 0 no problems, 1 "
        "problems found, 2 error.",
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
