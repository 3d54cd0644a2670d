"""The command `pplx-search`: results on stdout, all else on stderr, errors in one line.

Exit status: 0 done or found, 1 nothing found or something wrong with the index (`check`), 2 error, 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from pplx_edge import __version__
from pplx_edge.cli.options import Parser
from pplx_edge.cli.terminal import printable
from pplx_edge.errors import EdgeError
from pplx_search.settings import HOME_VARIABLE, default_home

COMMANDS = ("add", "update", "search", "get", "open", "status", "check", "rm", "watch", "reembed", "export")
_ERROR, _INTERRUPTED, _BROKEN_PIPE = 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    args = build_parser().parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except EdgeError as error:
        return _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing at exit complains
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        print("pplx-search: interrupted; what was committed stays, run it again to go on", file=sys.stderr)
        return _INTERRUPTED
    except OSError as error:
        return _fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog="pplx-search", description="Search in your own files, on this machine and nowhere else.")
    parser.add_argument("--version", action="version", version=f"pplx-search {__version__}")
    parser.add_argument(
        "--home",
        type=Path,
        default=default_home(),
        metavar="DIR",
        help=f"where the index lies (also: {HOME_VARIABLE}); default {default_home()}",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for name in COMMANDS:
        import_module(f"pplx_search.cli.{name}").add_parser(commands)
    return parser


def _fail(message: str) -> int:
    print(f"pplx-search: error: {printable(message)}", file=sys.stderr)
    return _ERROR
