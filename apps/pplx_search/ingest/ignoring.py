"""Apply the ignore files of a folder tree like git: the last match in the deepest ignore file decides."""

import os
from dataclasses import dataclass

from pplx_search.ingest.gitignore import Patterns, is_bad

_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Rules:
    """The patterns of one ignore file, which apply to paths below `base`."""

    base: str
    patterns: Patterns

    def decide(self, path: str) -> bool | None:
        return self.patterns.decide(path[len(self.base) :].lstrip("/"))


@dataclass(frozen=True, slots=True)
class Ignored:
    """The ignore files that apply to a folder, outermost first."""

    chain: tuple[_Rules, ...] = ()

    def __contains__(self, path: str) -> bool:
        """Return whether a path is ignored. The path of a folder must end with a slash."""
        for rules in reversed(self.chain):
            if (decision := rules.decide(path)) is not None:
                return decision
        return False

    def within(self, folder: str, lines: list[str]) -> "Ignored":
        """Return the rules for a folder whose ignore file has these lines."""
        return Ignored((*self.chain, _Rules(folder, Patterns(lines)))) if lines else self


def bad_lines(lines: list[str]) -> list[str]:
    """Return the lines that are invalid patterns, or would take too long to match."""
    return [line for line in lines if is_bad(line)]


def read_lines(path: str) -> list[str]:
    """Return the lines of an ignore file; empty if it does not exist or cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        return os.read(descriptor, _MAX_BYTES).decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []
    finally:
        os.close(descriptor)


def above(root: str) -> Ignored:
    """Return the rules for a folder inside a repository, from the ignore files above it."""
    folders, folder = [], os.path.dirname(root)
    while not os.path.exists(os.path.join(folder, ".git")):
        folders.append(folder)
        if folder == (folder := os.path.dirname(folder)):
            return Ignored()
    ignored = Ignored()
    for each in [folder, *reversed(folders)]:
        ignored = ignored.within(each, read_lines(os.path.join(each, ".gitignore")))
    return ignored
