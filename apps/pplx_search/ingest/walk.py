"""Find files in folders, with their metadata, or the reason why they are skipped. File contents are not read."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pplx_edge.errors import InputError
from pplx_search.ingest import ignoring
from pplx_search.ingest.gitignore import Patterns
from pplx_search.ingest.ignoring import Ignored
from pplx_search.ingest.kinds import kind_of, suffix_of

_DATALESS = 0x40000000  # macOS SF_DATALESS: the content is in the cloud, and reading would download it
_HIDDEN = 0x8000  # macOS UF_HIDDEN
_BUNDLES = {"app", "framework", "bundle", "photoslibrary", "musiclibrary", "tvlibrary", "xcodeproj", "xcassets"}


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that can be read. `kind` selects its parser; size and times are from the walk."""

    path: Path
    size: int
    mtime_ns: int
    device: int
    inode: int
    kind: str


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file, or a folder with all of its contents, that the rules skip."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class MissingRoot:
    """A path that cannot be checked now: it does not exist, is not mounted, or cannot be read.

    This is a root, or a file or folder below one. Keep whatever was found there before, because its absence proves
    nothing.
    """

    path: Path
    reason: str


Found = FoundFile | SkippedFile | MissingRoot


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkRules:
    """Rules for which files below a root to skip.

    `include` and `exclude` are globs as in `.gitignore`, relative to the root: `*.md`, `drafts/`, `/top/*.txt`. With
    `include`, only matching files are found. `hidden` includes hidden files and folders. `ignore_files` are interpreted
    like `.gitignore`. Folders named in `generated` contain output of tools and are skipped.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    hidden: bool = False
    ignore_files: tuple[str, ...] = (".gitignore",)
    generated: tuple[str, ...] = ("__pycache__", "node_modules")

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            if bad := ignoring.bad_lines(list(getattr(self, name))):
                raise InputError(f"{name}: {bad[0]!r} is not a valid pattern; use .gitignore syntax, such as '*.md'")


def walk(roots: Iterable[Path | str], rules: WalkRules = WalkRules()) -> Iterator[Found]:
    """Yield every file below the roots once, in the order of the roots, sorted by name within each.

    A root can be a file; it is found even if it is hidden or ignored. Symbolic links are followed if they are roots,
    but skipped below them, where they could form cycles or lead outside. Paths are absolute.
    """
    paths = [os.path.abspath(root) for root in roots]
    walker = _Walker(rules, paths)
    for path in paths:
        yield from walker.root(path)


class _Walker:
    def __init__(self, rules: WalkRules, roots: list[str]):
        self.rules = rules
        self.roots = set(roots)
        self.include = Patterns(rules.include) if rules.include else None
        self.exclude = Patterns(rules.exclude)
        self.folders_seen: set[tuple[int, int]] = set()
        self.roots_found: set[str] = set()

    def root(self, path: str) -> Iterator[Found]:
        try:
            info = os.stat(path)
        except OSError as error:
            yield MissingRoot(Path(path), _why(error))
            return
        if not stat.S_ISDIR(info.st_mode):
            if (found := self.file(path, os.path.basename(path), info)) is not None:
                yield found
            return
        ignored = ignoring.above(path) if self.rules.ignore_files else Ignored()
        yield from _Tree(self, path).below(path, info, ignored)

    def file(self, path: str, name: str, info: os.stat_result) -> FoundFile | SkippedFile | None:
        """Return the result for a file that no rule skips, or None for a root already found below another one."""
        if path in self.roots_found:
            return None
        if path in self.roots:
            self.roots_found.add(path)
        if not stat.S_ISREG(info.st_mode):
            return SkippedFile(Path(path), "not a regular file")
        if getattr(info, "st_flags", 0) & _DATALESS:
            return SkippedFile(Path(path), "stored only in the cloud")
        if name.startswith("~$"):
            return SkippedFile(Path(path), "temporary Office file")
        if (kind := kind_of(name)) is None:
            return SkippedFile(Path(path), f"no reader for .{suffix_of(name)} files")
        return FoundFile(Path(path), info.st_size, info.st_mtime_ns, info.st_dev, info.st_ino, kind)


class _Tree:
    """The walk of one root. Folders already visited below another root are not entered again."""

    def __init__(self, walker: _Walker, root: str):
        self.walker, self.rules, self.root = walker, walker.rules, root

    def below(self, path: str, info: os.stat_result, ignored: Ignored) -> Iterator[Found]:
        """Yield everything below the root, without recursion, since paths can be arbitrarily deep."""
        levels = [self._enter(path, info, ignored)]
        while levels:
            found = next(levels[-1], None)
            if found is None:
                levels.pop()
            elif isinstance(found, _Folder):
                levels.append(self._enter(found.path, found.info, found.ignored))
            else:
                yield found

    def _enter(self, path: str, info: os.stat_result, ignored: Ignored) -> "Iterator[Found | _Folder]":
        identity = (info.st_dev, info.st_ino)
        if identity in self.walker.folders_seen and info.st_ino:
            return
        self.walker.folders_seen.add(identity)
        try:
            with os.scandir(path) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            yield MissingRoot(Path(path), _why(error))
            return
        if not entries and path == self.root:
            yield MissingRoot(Path(path), "empty folder; is the disk mounted?")
            return
        for name in self.rules.ignore_files:
            lines = ignoring.read_lines(os.path.join(path, name))
            ignored = ignored.within(path, lines)
            if ignoring.bad_lines(lines):
                yield SkippedFile(Path(path, name), "contains invalid patterns, which are ignored")
        for entry in entries:
            if (found := self._entry(entry, os.path.join(path, entry.name), ignored)) is not None:
                yield found

    def _entry(self, entry: "os.DirEntry[str]", path: str, ignored: Ignored) -> "Found | _Folder | None":
        if entry.name.startswith(".") and not self.rules.hidden:
            return SkippedFile(Path(path), "hidden")
        try:
            if entry.is_symlink():
                return SkippedFile(Path(path), "symbolic link")
            info = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # deleted since the folder was listed
            return None
        except OSError as error:
            return MissingRoot(Path(path), _why(error))
        is_folder = stat.S_ISDIR(info.st_mode)
        if reason := self._rule_against(path + "/" * is_folder, info, ignored):
            return SkippedFile(Path(path), reason)
        if is_folder:
            return self._folder(entry.name, path, info, ignored)
        if self.walker.include and not self.walker.include.includes(self._relative(path)):
            return SkippedFile(Path(path), "not included")
        return self.walker.file(path, entry.name, info)

    def _rule_against(self, path: str, info: os.stat_result, ignored: Ignored) -> str:
        if not self.rules.hidden and getattr(info, "st_flags", 0) & _HIDDEN:
            return "hidden"
        if self.rules.exclude and self.walker.exclude.includes(self._relative(path)):
            return "excluded"
        return "ignored by .gitignore" if path in ignored else ""

    def _folder(self, name: str, path: str, info: os.stat_result, ignored: Ignored) -> "SkippedFile | _Folder":
        if name in self.rules.generated:
            return SkippedFile(Path(path), "generated by tools")
        if getattr(info, "st_flags", 0) & _DATALESS:
            return SkippedFile(Path(path), "stored only in the cloud")
        if suffix_of(name) in _BUNDLES:
            return SkippedFile(Path(path), "application or library bundle")
        return _Folder(path, info, ignored)

    def _relative(self, path: str) -> str:
        return path[len(self.root) :].lstrip("/")


@dataclass(frozen=True, slots=True)
class _Folder:
    path: str
    info: os.stat_result
    ignored: Ignored


def _why(error: OSError) -> str:
    return error.strerror or str(error)
