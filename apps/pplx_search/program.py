"""The command `pplx-search`.

Exit status: 0 success, 1 nothing found or a problem reported (`check`, `doctor`); others: `pplx_kit.program`.
"""

import argparse
from pathlib import Path

from pplx_kit.program import Program
from pplx_search.settings import HOME_VARIABLE, default_home

GROUPS = {
    "search": {
        "search": "find the passages that answer a question",
        "once": "search files and folders without keeping an index",
        "get": "print the text of a document as it was indexed",
        "open": "open a document in its default application",
    },
    "index": {
        "add": "index folders and files, and remember them for later updates",
        "update": "find new, changed and deleted files, and update the index",
        "watch": "keep the index up to date until interrupted",
        "status": "show what is indexed, what is not, and why",
        "rm": "remove folders, files or collections from the index; the files themselves are kept",
    },
    "maintain": {
        "doctor": "check the installation and the index, and suggest a fix for each problem",
        "check": "read the whole index once and report any problems",
        "reembed": "re-embed all documents with another model; searches use the old vectors until it finishes",
        "export": "write all passages with their vectors to a file",
    },
}


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--home",
        type=Path,
        default=default_home(),
        metavar="DIR",
        help=f"Directory of the index (default: ${HOME_VARIABLE} if it is set, otherwise {default_home()}).",
    )


PROGRAM = Program(
    name="pplx-search",
    description="Search your own files on this machine; nothing leaves it.",
    example='pplx-search add ~/Documents\npplx-search search "when does the lease end?"',
    groups=GROUPS,
    package="pplx_search.commands",
    first_step="pplx-search add FOLDER",
    memory_advice="close other programs, or use --threads 1 to index",
    extra="search",
    add_options=_add_options,
    value_options=("--home",),
)
COMMANDS = PROGRAM.commands
main = PROGRAM.main
build_parser = PROGRAM.parser
