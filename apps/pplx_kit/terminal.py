"""What people read: lines on stderr, sizes, colours, and text that cannot play tricks on a terminal."""

import os
import sys
from typing import TextIO

_COLOURS = {"path": "35", "line": "32", "score": "36"}
_UNIT = 1000
_JOINERS = "\u200c\u200d"  # not printable by themselves, but part of emoji and of several scripts


def say(message: str, *, program: str = "pplx-edge") -> None:
    """Write one line to stderr under the name of a program, whatever the message holds."""
    print(f"{program}: {printable(message)}", file=sys.stderr)


def printable(text: str) -> str:
    """The text on one line: runs of blanks as one space, control characters (escape sequences too) as `�`."""
    return "".join(char if char.isprintable() or char in _JOINERS else "�" for char in " ".join(text.split()))


def human_bytes(n_bytes: int) -> str:
    """`2.4 GB`, in powers of 1000."""
    size = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < _UNIT:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= _UNIT
    return f"{size:.1f} TB"


def colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal whose user did not switch colours off."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, role: str, wanted: bool) -> str:
    """The text in its role's colour when colours are wanted."""
    return f"\x1b[{_COLOURS[role]}m{text}\x1b[0m" if wanted else text
