"""Output for people: lines on stderr, sizes, colors, and text without control characters."""

import os
import sys
from typing import TextIO

_COLORS = {"path": "35", "line": "32", "score": "36"}
_UNIT = 1000
_JOINERS = "\u200c\u200d"  # not printable by themselves, but part of emoji and of several scripts


def say(message: str, *, program: str = "pplx-edge") -> None:
    """Write one line to stderr under the name of a program, whatever the message holds."""
    print(f"{program}: {printable(message)}", file=sys.stderr)


def printable(text: str) -> str:
    """Return the text on one line, with control characters and escape sequences replaced by `�`."""
    return "".join(char if char.isprintable() or char in _JOINERS else "�" for char in " ".join(text.split()))


def human_bytes(n_bytes: int) -> str:
    """Return a size such as `2.4 GB`, in powers of 1000."""
    size = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < _UNIT:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= _UNIT
    return f"{size:.1f} TB"


def colors(stream: TextIO) -> bool:
    """Return whether a stream is a terminal whose user has not turned colors off."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, role: str, wanted: bool) -> str:
    """Return the text in the color of its role, or unchanged unless colors are wanted."""
    return f"\x1b[{_COLORS[role]}m{text}\x1b[0m" if wanted else text
