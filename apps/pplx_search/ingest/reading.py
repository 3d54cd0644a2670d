"""Read files into documents, parsing them in child processes with limits on time and memory.

with Reader() as reader:
    for document in reader.read(path).documents:
        ...
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from pplx_edge.errors import EdgeError, InputError, MissingExtra, StorageError
from pplx_search.ingest.failures import ParseFailed
from pplx_search.ingest.kinds import kind_of, suffix_of
from pplx_search.ingest.opened_file import MAX_HASHED_BYTES, OpenedFile
from pplx_search.ingest.parsers import PARSERS
from pplx_search.ingest.process import Child, Watch
from pplx_search.ingest.spool import Spool, SpooledDocuments

_MB = 1 << 20
_BATCH_FILES, _BATCH_BYTES = 16, 1 << 20
_ANSWER_FACTOR = 7  # most answer bytes per byte of text, since control characters are escaped
_ADDRESS_SPACE = 512 * _MB  # address space reserved beyond the memory in use


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLimits:
    """Limits for reading one file.

    `seconds` limits wall-clock time, plus `seconds_per_gb` for each gigabyte of the file; `memory_mb` limits resident
    memory of the child. `max_file_mb` and `max_text_mb` limit the size of the file and of its text.
    """

    seconds: float = 60.0
    seconds_per_gb: float = 120.0
    memory_mb: int = 512
    max_file_mb: int = 4096
    max_text_mb: int = 1024

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be more than 0, got {getattr(self, name)!r}")


class ReadFailed(EdgeError):
    """A file that could not be read: `code` is one of failures.CODES, and `message` gives the details.

    `sha256` is the hash of the content, or empty if it could not be read. `changed` is True if the file was modified
    during reading, so that it should be tried again.
    """

    def __init__(self, code: str, message: str, *, sha256: str = "", changed: bool = False):
        super().__init__(message)
        self.code, self.message, self.sha256, self.changed = code, message, sha256, changed


@dataclass(frozen=True, slots=True, eq=False)
class ReadFile:
    """The documents of a file. `size`, `mtime_ns` and `sha256` describe the content that was parsed.

    `changed` is True if the file was modified or replaced during reading. Documents read their text from here, long
    ones from an unnamed temporary file, until this value is closed or deleted.
    """

    documents: SpooledDocuments
    sha256: str
    size: int
    mtime_ns: int
    changed: bool
    _spool: Spool

    def close(self) -> None:
        self._spool.close()

    def __enter__(self) -> "ReadFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class _Lane:
    """File kinds that share a child process, which is replaced after some number of files."""

    kinds: tuple[str, ...]
    n_files: int
    packages: tuple[str, ...] = ()  # optional packages that their parsers need


_LANES = (
    _Lane(("text", "markdown", "code", "csv", "jsonl", "json"), 5000, ("charset_normalizer",)),
    _Lane(("html", "mail", "mbox"), 500, ("selectolax", "charset_normalizer")),
    _Lane(("docx", "pptx", "xlsx", "odt", "epub"), 50, ("selectolax", "charset_normalizer")),
    _Lane(("pdf",), 1, ("pypdfium2",)),  # a hostile PDF must not affect the next one through native memory
)


class Reader:
    """Reads files one after the other. Use one reader per thread.

    `spool_dir` is the folder for documents that are too long for memory (None: the system's temporary folder).
    `parsers` maps each kind to the module that parses it.
    """

    def __init__(
        self,
        limits: ReadLimits = ReadLimits(),
        *,
        spool_dir: Path | None = None,
        parsers: Mapping[str, str] = PARSERS,
    ):
        self.limits, self.spool_dir, self.parsers = limits, spool_dir, parsers
        self._children: dict[_Lane, Child] = {}

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the child processes."""
        while self._children:
            self._children.popitem()[1].kill()

    def read(self, path: Path, kind: str | None = None) -> ReadFile:
        """Read the documents of a file. Its kind is derived from its name if it is not given.

        Raises ReadFailed, StorageError if there is no disk space for a long document, MissingExtra if the parser's
        package is not installed, and EdgeError if no child process can be started.
        """
        ((_, result),) = self.read_all([(path, kind or kind_of(path.name) or "")])
        if isinstance(result, ReadFailed):
            raise result
        return result

    def read_all(self, files: Iterable[tuple[Path, str]]) -> Iterator[tuple[Path, ReadFile | ReadFailed]]:
        """Yield each file (given with its kind) with its result, in order.

        Consecutive small files are requested together, so that child and caller wait less for each other on a busy
        machine. Raises the same errors as `read`, except that a ReadFailed is returned as a result.
        """
        batch: list[_Task] = []
        for path, kind in files:
            task = self._task(path, kind)
            if isinstance(task, ReadFailed):
                yield from self._read_batch(batch)
                yield path, task
                batch = []
                continue
            if not _go_together([*batch, task]):
                yield from self._read_batch(batch)
                batch = []
            batch.append(task)
        yield from self._read_batch(batch)

    def _task(self, path: Path, kind: str) -> "_Task | ReadFailed":
        """Return the request for a file and its child process, or the reason why it cannot be read at all."""
        if kind not in self.parsers:
            return ReadFailed("unsupported", f"no reader for .{suffix_of(path.name)} files")
        try:
            size = os.stat(path).st_size
        except OSError as error:
            return ReadFailed("unreadable", error.strerror or str(error))
        limits = self.limits
        seconds = limits.seconds + limits.seconds_per_gb * size / 1e9
        request = {
            "path": os.path.abspath(path),
            "kind": kind,
            "parser": self.parsers[kind],
            "seconds": seconds,
            "memory_bytes": limits.memory_mb * _MB + _ADDRESS_SPACE,
            "max_file_bytes": limits.max_file_mb * _MB,
            "max_text_bytes": limits.max_text_mb * _MB,
        }
        answer_bytes = _ANSWER_FACTOR * limits.max_text_mb * _MB
        watch = Watch(seconds=seconds, memory_bytes=limits.memory_mb * _MB, answer_bytes=answer_bytes)
        lane = next(lane for lane in _LANES if kind in lane.kinds)
        return _Task(path, size, lane, request, watch)

    def _read_batch(self, batch: "list[_Task]") -> "list[tuple[Path, ReadFile | ReadFailed]]":
        """Read the results of a whole batch before returning any, so that no child times out on a full pipe."""
        results: list[tuple[Path, ReadFile | ReadFailed]] = []
        child = None
        for i, task in enumerate(batch):
            if child is None or not child.alive:
                child = self._child(task.lane)
                for waiting in batch[i:]:
                    child.send(waiting.request)
            try:
                results.append((task.path, self._answer(child, task)))
            except ReadFailed as failed:
                results.append((task.path, failed))
            except ParseFailed as failed:
                results.append((task.path, ReadFailed(failed.code, failed.message, sha256=_hash_of(task))))
        if batch:
            self._replace_used(batch[0].lane)
        return results

    def _answer(self, child: Child, task: "_Task") -> ReadFile:
        collected = _Collected(Spool(self.spool_dir))
        try:
            with contextlib.closing(child.answer(task.watch)) as answer:
                for packed, message in answer:
                    collected.add(packed, message)
            return collected.result()
        except BaseException as error:
            collected.spool.close()
            if isinstance(error, OSError):
                raise StorageError(f"no space to store the text of {task.path}: {error.strerror}") from error
            raise

    def _child(self, lane: _Lane) -> Child:
        """Return the running child process of a lane, starting one if needed."""
        child = self._children.get(lane)
        if child is None or not child.is_running():
            if child is not None:
                child.kill()
            child = self._children[lane] = self._start(lane)
        return child

    def _start(self, lane: _Lane) -> Child:
        if any(find_spec(package) is None for package in lane.packages):
            raise MissingExtra(f"reading {', '.join(lane.kinds)} files", "search")
        modules = dict.fromkeys(self.parsers[kind] for kind in lane.kinds if kind in self.parsers)
        return Child(tuple(modules))

    def _replace_used(self, lane: _Lane) -> None:
        """Replace a child process that has read its number of files; the new one starts in the background."""
        child = self._children[lane]
        if child.n_asked >= lane.n_files:
            child.kill()
        if not child.is_running():
            self._child(lane)


@dataclass(frozen=True, slots=True)
class _Task:
    """A file to read: the lane of its child process, the request, and the limits."""

    path: Path
    size: int
    lane: _Lane
    request: dict[str, Any]
    watch: Watch


def _hash_of(task: _Task) -> str:
    """Return the hash of a file whose parser was killed, to recognize it later; empty for a large file."""
    try:
        opened = OpenedFile(str(task.path), str(task.request["kind"]), MAX_HASHED_BYTES)
    except ParseFailed:
        return ""
    try:
        return opened.sha256()
    except OSError:
        return ""
    finally:
        opened.close()


def _go_together(tasks: list[_Task]) -> bool:
    """Return whether the files can be requested together: requests and answers must be few and small."""
    lanes = {task.lane for task in tasks}
    few = len(tasks) <= min(_BATCH_FILES, next(iter(lanes)).n_files)
    small = sum(task.size for task in tasks) <= _BATCH_BYTES
    return len(tasks) == 1 or (len(lanes) == 1 and few and small)


class _Collected:
    """Collects the messages of an answer into documents."""

    def __init__(self, spool: Spool):
        self.spool = spool
        self.documents = SpooledDocuments(spool)
        self.last: dict[str, Any] = {}
        self._head = self._pieces = -1  # offsets of the open document and its first piece

    def add(self, packed: bytes, message: dict[str, Any]) -> None:
        self.last = message
        at, is_open = len(self.spool), self._head >= 0
        match message["type"]:
            case "document":
                self._require(not is_open)
                self._head, self._pieces = at, at + len(packed)
            case "end":
                self._require(is_open)
                self.documents.add(self._head, self._pieces, at, at + len(packed))
                self._head = -1
            case "text":
                self._require(is_open)
            case _:
                return
        self.spool.append(packed)

    def result(self) -> ReadFile:
        last = self.last
        if last["type"] == "failed":
            raise ReadFailed(last["code"], last["message"], sha256=last["sha256"], changed=last["changed"])
        self._require(self._head < 0)
        self.spool.flush()
        return ReadFile(self.documents, last["sha256"], last["size"], last["mtime_ns"], last["changed"], self.spool)

    @staticmethod
    def _require(in_order: bool) -> None:
        if not in_order:
            raise ParseFailed("crashed", "the parser process sent messages out of order")
