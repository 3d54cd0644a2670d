"""The SQLite connection of an index: opening, transactions and error translation."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from pplx_edge.errors import InputError, StorageError
from pplx_search.store.errors import translated
from pplx_search.store.schema import migrate, require_readable

DATABASE_FILE = "index.sqlite"
OLDEST_ENGINE = (3, 51, 3)  # before it, concurrent write and checkpoint can lose a commit
_PAGE_BYTES = 4096
_BUSY_MS = 10_000
_CACHE_KIB = 64 * 1024
_JOURNAL_LIMIT = 64 << 20
_READ_WRITE = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE

Step = Callable[[str], None]


class Database:
    """An open index file. `on_step` is called with the name of each step at which a crash is tolerated."""

    def __init__(self, path: Path, *, write: bool, on_step: Step, vfs: str | None = None):
        require_engine(apsw.sqlite_lib_version())
        self.path, self.writable, self.step = path, write, on_step
        self.n_rollbacks = 0
        self._depth = 0
        with translated(path):
            self._connection = _open(path, write, vfs)
            try:
                self._connection.set_busy_timeout(_BUSY_MS)
                for pragma, value in (("mmap_size", 0), ("foreign_keys", 1), ("cache_size", -_CACHE_KIB)):
                    self._connection.pragma(pragma, value)
                self._connection.create_scalar_function("contains", _contains, 2, deterministic=True)
                self._prepare(write)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, write: bool) -> None:
        if not write:
            if not require_readable(self._connection):  # created, but interrupted before the first migration
                raise InputError(f"{self.path.parent}: nothing is indexed yet; start with: pplx-search add FOLDER")
            self._connection.pragma("query_only", 1)
            return
        self._connection.pragma("page_size", _PAGE_BYTES)
        self._connection.pragma("auto_vacuum", 2)  # incremental; only takes effect in an empty file
        self._connection.pragma("journal_mode", "wal")
        self._connection.pragma("synchronous", 1)  # normal: a power failure can undo recent commits, but not corrupt
        self._connection.pragma("checkpoint_fullfsync", 1)  # on a Mac, fsync does not empty the cache of the disk
        self._connection.pragma("journal_size_limit", _JOURNAL_LIMIT)
        migrate(self._connection)

    def close(self) -> None:
        """Close the connection and roll back uncommitted changes."""
        with translated(self.path):
            self._connection.close()

    @property
    def state(self) -> tuple[int, int, int]:
        """A value that changes with every commit of any process, and every change or rollback of this connection."""
        version: int = self._connection.pragma("data_version")
        return version, self._connection.total_changes(), self.n_rollbacks

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block as one transaction; nested calls join the outer one. Takes the write lock at the start."""
        if not self.writable:
            raise InputError(f"{self.path}: opened for reading; use write=True to modify it")
        if self._depth:
            yield
            return
        with translated(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield
                self.step("commit")
                self._connection.execute("COMMIT")
            except BaseException:
                self._rollback()
                raise
            finally:
                self._depth -= 1
        self.step("committed")

    def _rollback(self) -> None:
        self.n_rollbacks += 1
        if self._connection.in_transaction:  # a full disk may have rolled it back already
            self._connection.execute("ROLLBACK")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read one consistent state of the index within the block, regardless of concurrent writes."""
        with translated(self.path):
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("COMMIT")

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with translated(self.path):
            return self._connection.execute(sql, tuple(values)).fetchall()

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query one at a time."""
        with translated(self.path):
            yield from self._connection.execute(sql, tuple(values))

    def row(self, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """Return the first row of a query, or None."""
        with translated(self.path):
            return self._connection.execute(sql, tuple(values)).fetchone()

    def value(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """Return the first column of the first row, or None if there is no row."""
        found = self.row(sql, values)
        return None if found is None else found[0]

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run a statement and return the number of changed rows."""
        with translated(self.path):
            self._connection.execute(sql, tuple(values))
            return self._connection.changes()

    def insert(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Run an INSERT and return the id of the new row."""
        with translated(self.path):
            self._connection.execute(sql, tuple(values))
            return self._connection.last_insert_rowid()

    def run_many(self, sql: str, rows: Iterator[Sequence[Any]] | Sequence[Sequence[Any]]) -> None:
        """Run a statement once per row."""
        with translated(self.path):
            self._connection.executemany(sql, rows)

    def pragma(self, name: str, *values: Any) -> Any:
        """Read or set a pragma."""
        with translated(self.path):
            return self._connection.pragma(name, *values)

    def read_blobs(self, table: str, column: str, ids: Sequence[int], into: memoryview, width: int) -> None:
        """Read blobs of `width` bytes into `into`, in the order of `ids`. Faster than one query per row."""
        if not ids:
            return
        with translated(self.path), self._connection.blob_open("main", table, column, ids[0], False) as blob:
            for offset, row in enumerate(ids):
                blob.reopen(row)
                blob.read_into(into, offset * width, width)

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file and truncate it, as far as possible without waiting for readers."""
        with translated(self.path):
            self._connection.set_busy_timeout(0)
            try:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                self._connection.set_busy_timeout(_BUSY_MS)

    @property
    def connection(self) -> apsw.Connection:
        """The underlying connection, for the schema."""
        return self._connection


def require_engine(version: str) -> None:
    """Raise StorageError if SQLite is too old to be safe with several processes."""
    if tuple(int(part) for part in version.split(".")) < OLDEST_ENGINE:
        oldest = ".".join(map(str, OLDEST_ENGINE))
        raise StorageError(f"SQLite {version} may lose commits; install {oldest} or newer: pip install -U apsw")


def _open(path: Path, write: bool, vfs: str | None) -> apsw.Connection:
    if write:
        return apsw.Connection(str(path), flags=_READ_WRITE, vfs=vfs)
    if not path.is_file():
        raise InputError(f"{path.parent}: no index found; create one first, or give its directory")
    try:  # readers share the log index with the writer in a memory-mapped file, so prefer write access to the directory
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE, vfs=vfs)
        connection.pragma("schema_version")
    except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.IOError):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY, vfs=vfs)
    return connection


def _contains(*values: object) -> bool:
    """Return True if the first text contains the second, ignoring case."""
    text, part = values
    return str(part).casefold() in str(text or "").casefold()
