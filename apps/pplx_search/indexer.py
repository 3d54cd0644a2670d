"""Update the index from files: read and embed new and changed files, and remove deleted ones.

`walk -> scan of the store -> tasks -> read ahead -> texts in the store -> vectors -> finished files`

Files are processed in groups. The texts of a group are committed and embedded together, and then its files are marked
as finished, while the next groups are already being read and committed. An interruption loses at most the vectors of
the last few seconds, and the next run continues from there.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from pplx_edge import ChunkVector, Embedder, StreamOptions
from pplx_edge.errors import NumericalError
from pplx_kit.progress import Progress
from pplx_search.embedding import BATCHES_AHEAD, Batch, TextEmbedder
from pplx_search.ids import FileId, TextId
from pplx_search.ingest.reading import Reader, ReadFailed, ReadFile, ReadLimits
from pplx_search.ingest.walk import Found, FoundFile, MissingRoot, SkippedFile, WalkRules, walk
from pplx_search.null_baseline import measure_null_baseline
from pplx_search.reader_thread import ReadAhead, Task
from pplx_search.settings import fingerprint_of
from pplx_search.store import (
    Collection,
    FileFacts,
    FileState,
    Generation,
    Root,
    Scan,
    Store,
    text_digest,
)
from pplx_search.store.values import signed

_GROUP_FILES = 64
_GROUP_BYTES = 250_000  # a larger file forms its own group, so that it does not delay small ones
_SCANNED_AT_ONCE = 1000
_TO_READ = (FileState.NEW, FileState.CHANGED, FileState.PENDING)
_READ_LIMITS = ReadLimits()


@dataclass(slots=True)
class Report:
    """The number of files per outcome of a run. `missing` lists roots and folders that could not be read."""

    indexed: int = 0
    unchanged: int = 0
    moved: int = 0
    known: int = 0
    failed: int = 0
    skipped: int = 0
    forgotten: int = 0
    changing: int = 0
    n_tokens: int = 0
    missing: list[MissingRoot] = field(default_factory=list)


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class _Staged:
    """A file that was read, with the ids of its texts in the store."""

    task: Task
    read: ReadFile
    text_ids: list[TextId]


class Indexer:
    """Brings an index up to date with the files of its collections. The store must be open for writing."""

    def __init__(
        self,
        store: Store,
        model: Embedder,
        options: StreamOptions,
        settings: dict[str, object],
        *,
        limits: ReadLimits = _READ_LIMITS,
        on_progress: OnProgress = lambda progress: None,
    ):
        self.store, self.limits, self.on_progress = store, limits, on_progress
        self.generation: Generation = store.vectors.use(fingerprint_of(settings), settings, model.dim)
        self.texts = TextEmbedder(store, model, self.generation, options, self._count)
        self.report = Report()
        self._total_files = self._total_bytes = self._files = self._bytes = 0
        self._embedding: dict[FileId, int] = {}  # size in bytes of files that are read but not finished, by file id
        self._chars = 0  # characters of these files that have vectors

    def update(self, collections: Iterable[Collection] | None = None, *, retry: bool = False) -> Report:
        """Scan the collections and index what changed. With `retry`, read files again that failed before."""
        tasks = [
            task
            for collection in (self.store.collections.all() if collections is None else collections)
            for root in collection.roots
            for task in self._scan(root, rules_of(collection), retry)
        ]
        self._total_files, self._total_bytes = len(tasks), sum(task.found.size for task in tasks)
        self._tell()
        with Reader(self.limits) as reader, self.texts:
            changed = self._index(reader, tasks)
            for task in self._index(reader, changed):
                self.report.changing += 1  # it keeps changing; the next run tries again
                self._done(task)
        self._measure_null_baseline()
        return self.report

    def rebuild(self) -> None:
        """Re-embed all texts for the generation of this indexer, then make it the one that searches use."""
        self._total_bytes = self._embedding[FileId(0)] = self.store.status().n_chars
        self._tell()
        self.texts.embed(self.store.vectors.pending(self.generation))
        self.store.vectors.switch(self.generation)
        self.store.compact()
        self._measure_null_baseline()

    def _measure_null_baseline(self) -> None:
        serving = self.store.vectors.serving
        if serving is not None and serving.id == self.generation.id:
            measure_null_baseline(self.store, self.texts.model, serving)

    def _scan(self, root: Root, rules: WalkRules, retry: bool) -> Iterator[Task]:
        scan, complete = self.store.files.scan(root.id), True
        found = walk([os.fsdecode(root.path)], rules)
        while some := list(islice(found, _SCANNED_AT_ONCE)):
            complete &= not any(isinstance(each, MissingRoot) for each in some)
            with self.store.transaction():
                tasks = [task for each in some for task in self._look_at(scan, each, retry)]
            yield from tasks
        if complete:
            self.report.forgotten += len(scan.forget_unseen())

    def _look_at(self, scan: Scan, found: Found, retry: bool) -> Iterator[Task]:
        match found:
            case FoundFile():
                yield from self._see(scan, found, retry)
            case SkippedFile(path, reason):
                self.report.skipped += 1
                scan.skip(FileFacts(path=os.fsencode(path)), reason, reason)
            case MissingRoot():
                self.report.missing.append(found)

    def _see(self, scan: Scan, found: FoundFile, retry: bool) -> Iterator[Task]:
        seen = scan.see(facts_of(found))
        hopeless = seen.state == FileState.FAILED and not retry
        if seen.state in _TO_READ or (seen.state == FileState.FAILED and retry):
            yield Task(seen.file_id, found)
        elif seen.state == FileState.MOVED:
            self.report.moved += 1
        else:
            self.report.failed += hopeless
            self.report.unchanged += not hopeless

    def _index(self, reader: Reader, tasks: list[Task]) -> list[Task]:
        """Read, embed and finish the files of some tasks; return the tasks whose file changed while it was read."""
        changed: list[Task] = []
        under_way: deque[tuple[list[_Staged], Batch]] = deque()
        with ReadAhead(reader, tasks, self.texts.keep) as ahead:
            for group in _groups(ahead):
                staged = self._stage_group(group, changed)
                under_way.append((staged, self.texts.begin(text_id for each in staged for text_id in each.text_ids)))
                if len(under_way) > BATCHES_AHEAD:
                    self._embed_group(*under_way.popleft())
            while under_way:
                self._embed_group(*under_way.popleft())
        return changed

    def _stage_group(self, group: list[tuple[Task, ReadFile | ReadFailed]], changed: list[Task]) -> list[_Staged]:
        """Commit what needs no new vectors, and return the files that do."""
        staged: list[_Staged] = []
        try:
            with self.store.transaction():
                for task, outcome in group:
                    if outcome.changed:
                        changed.append(task)
                    elif isinstance(outcome, ReadFailed):
                        self._fail(task, outcome.code, outcome.message, outcome.sha256)
                    elif self._adopt(task, outcome):
                        self.report.known += 1
                        self._done(task)
                    else:
                        staged.append(_Staged(task, outcome, self._stage(task, outcome)))
                        self._embedding[task.file_id] = task.found.size
        finally:
            for _, outcome in group:
                if isinstance(outcome, ReadFile):
                    outcome.close()
        return staged

    def _adopt(self, task: Task, read: ReadFile) -> bool:
        return self.store.files.adopt(task.file_id, _facts_read(task, read), bytes.fromhex(read.sha256))

    def _stage(self, task: Task, read: ReadFile) -> list[TextId]:
        """Store the documents of a file and return the ids of their texts."""
        self.store.files.begin(task.file_id)
        return [
            self.store.files.stage(task.file_id, document, text_digest(document)).text_id for document in read.documents
        ]

    def _embed_group(self, staged: list[_Staged], batch: Batch) -> None:
        try:
            self.texts.finish(batch)
        except NumericalError:  # the model returned a non-finite vector for one of the texts
            for each in staged:
                self._embed_alone(each)
        else:
            self._finish(staged)

    def _embed_alone(self, staged: _Staged) -> None:
        try:
            self.texts.embed(staged.text_ids)
        except NumericalError as error:
            self._fail(staged.task, "model", str(error), staged.read.sha256)
        else:
            self._finish([staged])

    def _finish(self, staged: list[_Staged]) -> None:
        with self.store.transaction():
            for each in staged:
                facts = _facts_read(each.task, each.read)
                self.store.files.finish(each.task.file_id, facts, bytes.fromhex(each.read.sha256))
        for each in staged:
            self.report.indexed += 1
            self._done(each.task)

    def _fail(self, task: Task, code: str, message: str, sha256: str) -> None:
        facts = facts_of(task.found)
        with contextlib.suppress(OSError):
            facts = FileFacts.of(facts.path, os.stat(task.found.path))
        self.store.files.fail(task.file_id, facts, bytes.fromhex(sha256) or None, code, message)
        self.report.failed += 1
        self._done(task)

    def _done(self, task: Task) -> None:
        self._files, self._bytes = self._files + 1, self._bytes + task.found.size
        self._chars = max(0, self._chars - self._embedding.pop(task.file_id, 0))
        self._tell()

    def _count(self, vector: ChunkVector) -> None:
        self.report.n_tokens += vector.tokens
        self._chars += vector.stop - vector.start
        self._tell()

    def _tell(self) -> None:
        n_bytes = self._bytes + min(self._chars, sum(self._embedding.values()))
        self.on_progress(Progress(self._total_files, self._total_bytes, self._files, n_bytes, self.report.n_tokens))


def rules_of(collection: Collection) -> WalkRules:
    """Return the walk rules of a collection."""
    kept = {name: collection.rules[name] for name in ("include", "exclude") if name in collection.rules}
    return WalkRules(hidden=bool(collection.rules.get("hidden")), **{name: tuple(kept[name]) for name in kept})


def facts_of(found: FoundFile) -> FileFacts:
    """Return the facts by which the store recognizes a file."""
    return FileFacts(
        path=os.fsencode(found.path),
        size=found.size,
        mtime_ns=found.mtime_ns,
        inode=signed(found.inode),
        device=signed(found.device),
    )


def _facts_read(task: Task, read: ReadFile) -> FileFacts:
    """Return the facts of the version that was parsed, which may be newer than the one found by the walk."""
    found = facts_of(task.found)
    return FileFacts(path=found.path, size=read.size, mtime_ns=read.mtime_ns, inode=found.inode, device=found.device)


def _groups(ahead: ReadAhead) -> Iterator[list[tuple[Task, ReadFile | ReadFailed]]]:
    """Yield groups of files to commit and embed together: up to some dozens, fewer if they are large."""
    group: list[tuple[Task, ReadFile | ReadFailed]] = []
    n_bytes = 0
    for task, outcome in ahead:
        if group and n_bytes + task.found.size > _GROUP_BYTES:
            yield group
            group, n_bytes = [], 0
        group.append((task, outcome))
        n_bytes += task.found.size
        if len(group) >= _GROUP_FILES or n_bytes >= _GROUP_BYTES:
            yield group
            group, n_bytes = [], 0
    if group:
        yield group
