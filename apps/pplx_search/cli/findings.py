"""What `doctor` finds out, one value for each thing that it looks at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """`NOTE` works, and there is something to know; `WRONG` does not work as it should."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A thing that was looked at, what it is, and the next move where there is one to make.

    `facts` are the same for programs; they are JSON values.
    """

    name: str
    what: str
    verdict: Verdict = Verdict.OK
    advice: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def wrong(name: str, what: str, advice: str = "", **facts: Any) -> Finding:
    """Something that does not work."""
    return Finding(name=name, what=what, verdict=Verdict.WRONG, advice=advice, facts=facts)


def note(name: str, what: str, advice: str = "", **facts: Any) -> Finding:
    """Something that works, and is worth knowing."""
    return Finding(name=name, what=what, verdict=Verdict.NOTE, advice=advice, facts=facts)


def sound(name: str, what: str, **facts: Any) -> Finding:
    """Something that is as it should be."""
    return Finding(name=name, what=what, facts=facts)
