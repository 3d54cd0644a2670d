"""The command `pplx-search`.

Exit status: 0 success, 1 nothing found or a problem reported (`check`, `doctor`); others: `pplx_kit.program`.
"""

import argparse
from pathlib import Path

from pplx_kit.program import Program
from pplx_search.settings import HOME_VARIABLE, default_home

COMMANDS = (
    *("add", "update", "search", "once", "get", "open", "status", "rm"),
    *("watch", "check", "doctor", "reembed", "export"),
)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--home",
        type=Path,
        default=default_home(),
        metavar="DIR",
        help=f"Directory of the index (default: {default_home()}, or ${HOME_VARIABLE} when it is set).",
    )


PROGRAM = Program(
    name="pplx-search",
    description="Search your own files on this machine; nothing leaves it.",
    example='pplx-search add ~/Documents\npplx-search search "when does the lease end?"',
    commands={name: f"pplx_search.cli.{name}" for name in COMMANDS},
    first_step="pplx-search add FOLDER",
    memory_advice="close other programs, or use --threads 1 to index",
    extra="search",
    add_options=_add_options,
    value_options=("--home",),
)
main = PROGRAM.main
build_parser = PROGRAM.parser
