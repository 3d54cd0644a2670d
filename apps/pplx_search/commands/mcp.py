"""`pplx-search mcp`: a server of the Model Context Protocol on stdin and stdout, and its entry in assistants."""

import argparse
import sys
from pathlib import Path
from typing import Any

from pplx_edge.errors import InputError
from pplx_kit.options import add_command
from pplx_search.assistant_setup import TARGETS, planned, snippet
from pplx_search.console import say
from pplx_search.options import add_model_options
from pplx_search.program import COMMANDS, PROGRAM


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "mcp",
        COMMANDS["mcp"],
        "pplx-search mcp install --target claude\npplx-search mcp install --target zed --print",
        description="Without an action, serves the tools search, get, similar and status on stdin and stdout, as "
        "assistants start it. They can read what is indexed and change nothing.",
    )
    add_model_options(parser)
    parser.set_defaults(run=run_server)
    actions = parser.add_subparsers(metavar="ACTION")
    for name, summary, run in (
        ("install", "enter this program into the configuration of an assistant", run_install),
        ("remove", "take it out of the configuration again", run_remove),
    ):
        action = add_command(actions, name, summary, f"pplx-search mcp {name} --target cursor")
        about = ", ".join(f"{key}: {target.title}" for key, target in TARGETS.items())
        action.add_argument("--target", required=True, choices=TARGETS, metavar="NAME", help=f"The assistant; {about}.")
        action.add_argument("--yes", action="store_true", help="Change the file without asking.")
        if name == "install":
            action.add_argument("--print", action="store_true", help="Print the lines to paste, and change nothing.")
        action.set_defaults(run=run)


def run_server(args: argparse.Namespace) -> int:
    assistant = PROGRAM.load("pplx_search.assistant", "pplx-search mcp", "mcp")
    from pplx_search.page.library import Library

    library = Library(args.home)
    try:
        assistant.build_server(library, assistant.QueryEncoder(library, args).encode).run("stdio")
    finally:
        library.close()
    return 0


def run_install(args: argparse.Namespace) -> int:
    target = TARGETS[args.target]
    arguments = [sys.executable, "-m", "pplx_search", "--home", str(args.home.expanduser().absolute()), "mcp"]
    if args.print:
        print(snippet(target, arguments))
        return 0
    try:
        return _apply(args, arguments)
    except InputError as error:
        say(f"{error}; paste this into {target.path(Path.home())}:")
        print(snippet(target, arguments))
        return 1


def run_remove(args: argparse.Namespace) -> int:
    return _apply(args, None)


def _apply(args: argparse.Namespace, arguments: list[str] | None) -> int:
    target = TARGETS[args.target]
    change = planned(target, Path.home(), arguments)
    if not change.diff:
        say(f"{change.path}: nothing to change")
        return 0
    print(change.diff, end="")
    if not args.yes and not _agreed():
        say("nothing was changed")
        return 1
    change.write()
    say(f"{change.path}: changed; restart {target.title}")
    return 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise InputError("to change the file without a question, use --yes")
    return input("Change the file? [y/N] ").strip().lower() in ("y", "yes")
