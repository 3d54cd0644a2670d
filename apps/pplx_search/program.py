"""The command `pplx-search`.

Exit status: 0 success, 1 nothing found or a problem reported (`check`, `doctor`); others: `pplx_kit.program`.
"""

import argparse
import os
import sys
from pathlib import Path

from pplx_kit.program import Program

HOME_VARIABLE = "PPLX_SEARCH_HOME"
GROUPS = {
    "search": {
        "search": "find the passages that answer a question",
        "once": "search files and folders without keeping an index",
        "get": "print the text of a document as it was indexed",
        "open": "open a document in its default application",
        "serve": "search in the browser, and keep the model open for the other commands",
        "mcp": "let assistants search your files over the Model Context Protocol",
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


def default_home() -> Path:
    """Return the default index folder: PPLX_SEARCH_HOME, or the system's folder for application data."""
    if named := os.environ.get(HOME_VARIABLE):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "pplx-search"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "pplx-search"


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
