"""`pplx-search open`: open a document's file in the default application."""

import argparse
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

from pplx_edge.errors import EdgeError, InputError
from pplx_kit.options import add_command
from pplx_search.access import open_index
from pplx_search.program import COMMANDS


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "open",
        COMMANDS["open"],
        "pplx-search open 12",
        description="Opens the file of the document with the system's `open` (macOS) or `xdg-open` (Linux), not at the "
        "place of a result. A document's ID is the number in square brackets at the end of the first line of a result "
        "of `search`. A file that is executable is not opened; its folder is shown instead.",
    )
    parser.add_argument("document", type=int, metavar="ID", help="ID of the document.")
    parser.add_argument("--reveal", action="store_true", help="Show the file in its folder instead of opening it.")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    with open_index(args) as store:
        path = Path(os.fsdecode(store.document(args.document).path))
    open_file(path, reveal=args.reveal)
    return 0


def open_file(path: Path, *, reveal: bool) -> None:
    """Open a file in its application, or show it in its folder. Executable files are always shown in their folder."""
    try:
        info = path.stat()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; to refresh the index, run: pplx-search update") from error
    runs = not stat.S_ISREG(info.st_mode) or bool(info.st_mode & 0o111)
    command = command_for(path, reveal=reveal or runs)
    try:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise EdgeError(f"{command[0]} is not installed; open {path} yourself") from error
    except subprocess.CalledProcessError as error:
        raise EdgeError(f"{command[0]} could not open {path} (exit status {error.returncode})") from error


def command_for(path: Path, *, reveal: bool) -> list[str]:
    """Return the system command that opens a file, or shows the folder that contains it."""
    if sys.platform == "darwin":
        return ["open", "-R", str(path)] if reveal else ["open", str(path)]
    return ["xdg-open", str(path.parent if reveal else path)]
