"""Text files below paths. What is not read is counted with its reason, never dropped in silence."""

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pplx_kit.terminal import human_bytes

_SNIFF_BYTES = 8192
_NAMES_SHOWN = 3
_GENERATED = {"__pycache__", "node_modules"}  # what tools put beside people's files, passed over like hidden ones


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file's path as the user would write it, and its text."""

    path: str
    text: str


@dataclass(slots=True)
class Walk:
    """Reads the text files of a list of paths; afterwards `skipped` (reason to paths) and `failed` say what was not.

    A named file is read even when it is hidden; below a directory, hidden files and directories and those of tools
    (`__pycache__`, `node_modules`) are passed over, and so are symbolic links, which could lead in circles or outside.
    """

    max_bytes: int
    skipped: dict[str, list[str]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def text_files(self, paths: Sequence[str]) -> Iterator[TextFile]:
        """Every text file once, in the order of the paths and of names within them."""
        for path in paths:
            for found in self._files(Path(path)):
                if (text := self._text(found)) is not None:
                    yield TextFile(str(found), text)

    def summary(self) -> str:
        """What was skipped, in one line; empty when nothing was."""
        parts = []
        for reason, paths in self.skipped.items():
            more = f" and {len(paths) - _NAMES_SHOWN} more" if len(paths) > _NAMES_SHOWN else ""
            parts.append(f"{len(paths)} {reason} ({', '.join(paths[:_NAMES_SHOWN])}{more})")
        return "; ".join(parts)

    def _files(self, path: Path) -> Iterator[Path]:
        try:
            info = path.stat()
            if not stat.S_ISDIR(info.st_mode):
                yield from self._once(path, info)
                return
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            self.failed.append(f"{path}: {error.strerror}")
            return
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _GENERATED:
                continue
            if entry.is_symlink():
                self._skip("symbolic links", path / entry.name)
            else:
                yield from self._files(path / entry.name)

    def _once(self, path: Path, info: os.stat_result) -> Iterator[Path]:
        """The path, unless it is not a plain file or was met before under another of the given paths."""
        if not stat.S_ISREG(info.st_mode):
            self._skip("not plain files", path)
        elif info.st_size > self.max_bytes:
            self._skip(f"larger than {human_bytes(self.max_bytes)}", path)
        elif (info.st_dev, info.st_ino) not in self._seen:
            self._seen.add((info.st_dev, info.st_ino))
            yield path

    def _text(self, path: Path) -> str | None:
        try:
            raw = path.read_bytes()
        except OSError as error:
            self.failed.append(f"{path}: {error.strerror}")
            return None
        if b"\0" in raw[:_SNIFF_BYTES]:
            return self._skip("binary", path)
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError:
            return self._skip("not UTF-8 text", path)

    def _skip(self, reason: str, path: Path) -> None:
        self.skipped.setdefault(reason, []).append(str(path))
