"""Patterns of git ignore files: the last pattern that matches a path decides.

Paths are relative to the folder of the patterns and use slashes; the path of a folder ends with one. The rules follow
git's `.gitignore` documentation, and the tests compare them with git itself.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

_MAX_DEEP_STARS = 4  # `**/` in one pattern: matching time is exponential in their number
_ESCAPED_SPACE = "\\ "
_CLASSES = {
    "alnum": "A-Za-z0-9",
    "alpha": "A-Za-z",
    "blank": " \\t",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-/:-@\\[-`{-~",
    "space": "\\s",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}


class BadPattern(ValueError):
    """A line that is not a valid pattern, or would take too long to match."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern. `anchored` patterns match the whole path, others its last component."""

    matcher: re.Pattern[str]
    negated: bool
    folders_only: bool
    anchored: bool

    @classmethod
    def parse(cls, line: str) -> "Pattern | None":
        """Parse a line; returns None for a blank line or a comment. Raises BadPattern."""
        text = _without_spaces(line.rstrip("\r\n"))
        if not text or text.startswith("#"):
            return None
        negated = text.startswith("!")
        text = text[negated:]
        folders_only = text.endswith("/") and not text.endswith("\\/")
        text = text[:-1] if folders_only else text
        anchored = "/" in text
        text = text.removeprefix("/")
        if not text:
            raise BadPattern(f"{line!r} matches nothing")
        if text.split("/").count("**") > _MAX_DEEP_STARS:
            raise BadPattern(f"{line!r} contains ** more than {_MAX_DEEP_STARS} times")
        return cls(re.compile(_translated(text), re.DOTALL), negated, folders_only, anchored)

    def matches(self, path: str) -> bool:
        """Return whether the pattern matches the path itself; folders above it are not considered."""
        if self.folders_only and not path.endswith("/"):
            return False
        whole = path.rstrip("/")
        return self.matcher.fullmatch(whole if self.anchored else whole.rpartition("/")[2]) is not None


class Patterns:
    """The patterns of some lines, in order, without invalid lines."""

    def __init__(self, lines: Iterable[str]):
        self.patterns = [pattern for line in lines if not is_bad(line) for pattern in [Pattern.parse(line)] if pattern]

    def decide(self, path: str) -> bool | None:
        """Return True if a path is ignored, False if it is re-included by `!`, and None if no pattern matches.

        Folders above the path are not considered, because a walk does not enter ignored folders.
        """
        for pattern in reversed(self.patterns):
            if pattern.matches(path):
                return not pattern.negated
        return None

    def includes(self, path: str) -> bool:
        """Return whether a path or a folder above it is ignored."""
        return any(self.decide(above) for above in _from_the_top(path))


def is_bad(line: str) -> bool:
    """Return whether a line is an invalid pattern, or would take too long to match."""
    try:
        Pattern.parse(line)
    except BadPattern:
        return True
    return False


def _from_the_top(path: str) -> Iterator[str]:
    """Return a path and the folders above it, from the top: `a/`, `a/b/` and `a/b/c`."""
    parts = re.findall(r"[^/]+/?", path)
    return accumulate(parts)


def _without_spaces(text: str) -> str:
    """Return the line without trailing spaces, except for an escaped one."""
    while text.endswith(" ") and not text.endswith(_ESCAPED_SPACE):
        text = text[:-1]
    return text


def _translated(text: str) -> str:
    """Return the regular expression of a pattern, given without its leading and trailing markers."""
    parts = _components(text)
    found = ""
    for i, part in enumerate(parts):
        is_last = i + 1 == len(parts)
        if part == "**" and not is_last:
            found += "(?:.*/)?"
        elif part == "**" and i:
            found += ".+"
        else:
            found += _part(part) + ("" if is_last else "/")
    return found


def _components(text: str) -> list[str]:
    """Split a pattern at the slashes that are not in a character set."""
    parts, start, i = [], 0, 0
    while i < len(text):
        if text[i] == "[":
            _, i = _bracket(text, i)
        elif text[i] == "/":
            parts.append(text[start:i])
            i += 1
            start = i
        else:
            i += 1 + (text[i] == "\\")
    return [*parts, text[start:]]


def _part(part: str) -> str:
    """Return the regular expression of one path component.

    The text after a star only matches at its first occurrence (an atomic group), except for the last one, which must
    reach the end. This bounds the matching time by the length of the path times that of the pattern.
    """
    first, *others = _between_stars(part)
    if not others:
        return first
    *middle, last = others
    return first + "".join(f"(?>[^/]*?{piece})" for piece in middle if piece) + f"[^/]*{last}"


def _between_stars(part: str) -> list[str]:
    """Return the regular expressions of the text between the stars of a path component."""
    found, i = [""], 0
    while i < len(part):
        if part[i] == "*":
            found.append("")
            i += 1
        elif part[i] == "?":
            found[-1] += "[^/]"
            i += 1
        elif part[i] == "[":
            piece, i = _bracket(part, i)
            found[-1] += piece
        elif part[i] == "\\":
            if i + 1 == len(part):
                raise BadPattern(f"{part!r} ends with a backslash")
            found[-1] += re.escape(part[i + 1])
            i += 2
        else:
            found[-1] += re.escape(part[i])
            i += 1
    return found


def _bracket(text: str, start: int) -> tuple[str, int]:
    """Return the expression of the character set that begins at `start`, and its end. Raises BadPattern."""
    i = start + 1
    negated = text[i : i + 1] in ("!", "^")
    i += negated
    inner, first = "", True
    while i < len(text) and (text[i] != "]" or first):
        first = False
        if text.startswith("[:", i) and (end := text.find(":]", i)) > 0:
            name = text[i + 2 : end]
            if name not in _CLASSES:
                raise BadPattern(f"{text!r}: unknown class [:{name}:]")
            inner, i = inner + _CLASSES[name], end + 2
            continue
        if text[i] == "\\" and i + 1 < len(text):
            i += 1
        low, i = text[i], i + 1
        if text[i : i + 1] == "-" and text[i + 1 : i + 2] not in ("", "]"):
            i += 1
            if text[i] == "\\" and i + 1 < len(text):
                i += 1
            high, i = text[i], i + 1
            inner += f"{re.escape(low)}-{re.escape(high)}" if low <= high else re.escape(low)
        else:
            inner += re.escape(low)
    if i >= len(text):
        raise BadPattern(f"{text!r} has an unclosed character set")
    if not inner:
        return ("[^/]" if negated else "(?!)"), i + 1
    return f"(?!/)[{'^' if negated else ''}{inner}]", i + 1
