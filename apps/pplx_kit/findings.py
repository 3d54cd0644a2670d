"""The results of `doctor`, one finding per check."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


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


def wrong(name: str, what: str, advice: str = "", **facts: Any) -> Finding:
    """Return a finding about something that does not work."""
    return Finding(name=name, what=what, verdict=Verdict.WRONG, advice=advice, facts=facts)


def note(name: str, what: str, advice: str = "", **facts: Any) -> Finding:
    """Return a finding about something that works but is worth knowing."""
    return Finding(name=name, what=what, verdict=Verdict.NOTE, advice=advice, facts=facts)


def sound(name: str, what: str, **facts: Any) -> Finding:
    """Return a finding about something that is as it should be."""
    return Finding(name=name, what=what, facts=facts)
