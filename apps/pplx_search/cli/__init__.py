"""The command `pplx-search`: results on stdout, all else on stderr, errors in one line.

Exit status: 0 done or found, 1 nothing found or something wrong (`check`, `doctor`), 2 error, 130 interrupted, 141 the
reader of stdout went away.
"""

import argparse
import difflib
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pplx_edge import __version__
from pplx_edge.errors import EdgeError, InputError, MissingExtra
from pplx_kit.options import Parser
from pplx_kit.terminal import printable
from pplx_search.settings import HOME_VARIABLE, default_home

COMMANDS = (
    *("add", "update", "search", "get", "open", "status", "rm"),
    *("watch", "check", "doctor", "reembed", "export"),
)
_ERROR, _INTERRUPTED, _BROKEN_PIPE = 2, 130, 141
_OURS = ("pplx_search", "pplx_edge")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding gets escapes instead of an error
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        command = _command_in(arguments)
        args, unknown = build_parser(command).parse_known_args(arguments)
        if unknown:
            raise InputError(f"{_complaint(unknown[0])} (see: pplx-search {command} --help)")
        status = args.run(args)
        sys.stdout.flush()
        return status
    except EdgeError as error:
        return _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or flushing at exit complains
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        return _fail(f"{error.filename or 'standard output'}: {error.strerror or error}")
    except MemoryError:
        return _fail("out of memory; close other programs, or index with --threads 1")


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands, or of one alone, which spares loading what the others need."""
    parser = Parser(
        prog="pplx-search",
        description="Search in your own files, on this machine and nowhere else.",
        epilog='example:\n  pplx-search add ~/Documents\n  pplx-search search "when does the lease end?"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pplx-search {__version__}")
    parser.add_argument(
        "--home",
        type=Path,
        default=default_home(),
        metavar="DIR",
        help=f"where the index lies (also: {HOME_VARIABLE}); default {default_home()}",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for name in COMMANDS if only is None else (only,):
        load_module(name, f"pplx-search {name}").add_parser(commands)
    return parser


def _command_in(arguments: Sequence[str]) -> str | None:
    """The command that the arguments name, None where options ask for something else.

    Raises InputError, with a suggestion for a slip of the pen, where they name none that there is.
    """
    words = iter(arguments)
    for word in words:
        if word == "--home":
            next(words, None)
        elif not word.startswith("-"):
            if word not in COMMANDS:
                close = difflib.get_close_matches(word, COMMANDS, n=1)
                meant = f"; did you mean {close[0]}?" if close else ""
                raise InputError(f"there is no command {word!r}{meant} (see: pplx-search --help)")
            return word
        elif not word.startswith("--home="):
            return None
    if not arguments:
        raise InputError("say what to do; begin with: pplx-search add FOLDER (see: pplx-search --help)")
    return None


def _complaint(argument: str) -> str:
    if argument.startswith("-"):
        return f"unknown option {argument}"
    return f"{argument!r} is one argument too many; write several words in quotes"


def load_module(name: str, feature: str) -> Any:
    """A module of this package. Raises MissingExtra, naming the feature, where it needs what is not installed."""
    try:
        return import_module(f"pplx_search.cli.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise
        raise MissingExtra(f"{feature} ({error.name} is not installed)", "search") from error


def _fail(message: str) -> int:
    print(f"pplx-search: error: {printable(message)}", file=sys.stderr)
    return _ERROR
