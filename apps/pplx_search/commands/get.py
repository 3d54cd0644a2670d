"""`pplx-search get`: print the text of a document, or some of its lines."""

import argparse
import re
import sys
from typing import Any

from pplx_kit.options import add_command
from pplx_search.access import open_index
from pplx_search.program import COMMANDS

_LINES = 20
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # can manipulate a terminal


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "get",
        COMMANDS["get"],
        "pplx-search get 12\npplx-search get 12:240:10",
        description="A document's ID is the number in square brackets at the end of the first line of a result of "
        "`search`. Lines are those of the extracted text; in a PDF they are not the lines of a page. On a terminal, "
        "control characters are replaced.",
    )
    parser.add_argument(
        "place",
        type=_place,
        metavar="ID[:LINE[:COUNT]]",
        help=f"Document to print: all of it, or COUNT lines (default: {_LINES}) starting at LINE.",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    number, line, count = args.place
    with open_index(args) as store:
        document = store.document(number)
        if line is not None:
            _write(store.lines(document.text_id, line, count))
        else:
            for piece in store.pieces(document.text_id):
                _write(piece.text)
    return 0


def _write(text: str) -> None:
    sys.stdout.write(_CONTROL.sub("�", text) if sys.stdout.isatty() else text)


def _place(text: str) -> tuple[int, int | None, int]:
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected ID, ID:LINE or ID:LINE:COUNT; got {text!r}")
    numbers = [int(part) for part in parts]
    return numbers[0], numbers[1] if len(numbers) > 1 else None, numbers[2] if len(numbers) > 2 else _LINES
