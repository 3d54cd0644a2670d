"""Messages and paths as the commands show them on the terminal."""

import os
from pathlib import Path

from pplx_kit.terminal import printable
from pplx_search.program import PROGRAM

say = PROGRAM.say

_PATH_CHARS, _PATH_HEAD = 160, 50  # longest path shown, and how much of its start


def shown_path(path: bytes, *, from_here: bool = True) -> str:
    """Return a path for display, on one line, with the middle of a very long path replaced by an ellipsis.

    The path is relative to the current directory if it is inside it and `from_here` is True, or starts with `~`.
    """
    text = os.fsdecode(path)
    for above, sign in ((str(Path.cwd()) if from_here else "", ""), (str(Path.home()), f"~{os.sep}")):
        if len(above) > 1 and text.startswith(above + os.sep):
            text = sign + text.removeprefix(above + os.sep)
            break
    text = printable(text)
    return text if len(text) <= _PATH_CHARS else f"{text[:_PATH_HEAD]}…{text[_PATH_HEAD + 1 - _PATH_CHARS :]}"
