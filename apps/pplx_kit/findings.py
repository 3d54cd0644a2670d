"""The results of `doctor`, one finding per check, and how they are printed."""

import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pplx_kit.terminal import printable

NAME_CHARS = 11  # width of the first column


class Verdict(StrEnum):
    """The outcome of a check. `NOTE`: works, with a remark worth reading. `WRONG`: does not work as it should."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check, with advice if the user should do something.

    `facts` holds the same information as JSON values, for programs.
    """

    name: str
    what: str
    verdict: Verdict = Verdict.OK
    advice: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """The finding as text, wrapped to the terminal, with its advice on a separate line."""
        lines = [entry(self.name, self.what if self.verdict == Verdict.OK else f"{self.verdict}: {self.what}")]
        lines += [entry("", f"→ {self.advice}")] if self.advice else []
        return "\n".join(lines)


def wrong(name: str, what: str, advice: str = "", **facts: Any) -> Finding:
    """Return a finding about something that does not work."""
    return Finding(name=name, what=what, verdict=Verdict.WRONG, advice=advice, facts=facts)


def note(name: str, what: str, advice: str = "", **facts: Any) -> Finding:
    """Return a finding about something that works but is worth knowing."""
    return Finding(name=name, what=what, verdict=Verdict.NOTE, advice=advice, facts=facts)


def sound(name: str, what: str, **facts: Any) -> Finding:
    """Return a finding about something that is as it should be."""
    return Finding(name=name, what=what, facts=facts)


def entry(name: str, text: str) -> str:
    """Return a line of a doctor: a name and a text, wrapped if stdout is a terminal."""
    line = f"{name:{NAME_CHARS}} {printable(text)}"
    if not sys.stdout.isatty():
        return line
    width = max(40, shutil.get_terminal_size().columns)
    indent = " " * (NAME_CHARS + 1)
    return textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
