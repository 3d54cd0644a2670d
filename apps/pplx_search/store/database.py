"""The connection to an index's one file: how it is opened, its transactions, and its errors in words."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from pplx_edge.errors import InputError, StorageError
from pplx_search.store.errors import translated
from pplx_search.store.schema import migrate, require_readable

DATABASE_FILE = "index.sqlite"
OLDEST_ENGINE = (3, 51, 3)  # before it, two processes that write and checkpoint at once may lose a commit
_PAGE_BYTES = 4096
_BUSY_MS = 10_000
_CACHE_KIB = 64 * 1024
_JOURNAL_LIMIT = 64 << 20
_READ_WRITE = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE

Step = Callable[[str], None]


class Database:
    """An opened index file. `on_step` is told the name of each step whose interruption the design allows for."""

    def __init__(self, path: Path, *, write: bool, on_step: Step, vfs: str | None = None):
        require_engine(apsw.sqlite_lib_version())
        self.path, self.writable, self.step = path, write, on_step
        self.n_undone = 0
        self._depth = 0
        with translated(path):
            self._connection = _open(path, write, vfs)
            try:
                self._connection.set_busy_timeout(_BUSY_MS)
                for pragma, value in (("mmap_size", 0), ("foreign_keys", 1), ("cache_size", -_CACHE_KIB)):
                    self._connection.pragma(pragma, value)
                self._connection.create_scalar_function("holds", _holds, 2, deterministic=True)
                self._prepare(write)
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self, write: bool) -> None:
        if not write:
            if not require_readable(self._connection):  # made, and ended before its first step
                raise InputError(f"{self.path.parent}: nothing is indexed yet; begin with: pplx-search add FOLDER")
            self._connection.pragma("query_only", 1)
            return
        self._connection.pragma("page_size", _PAGE_BYTES)
        self._connection.pragma("auto_vacuum", 2)  # incremental; takes effect in an empty file only
        self._connection.pragma("journal_mode", "wal")
        self._connection.pragma("synchronous", 1)  # normal: a power cut may take back the last commits, never break
        self._connection.pragma("journal_size_limit", _JOURNAL_LIMIT)
        migrate(self._connection)

    def close(self) -> None:
        """Ends the connection; what is not committed is undone."""
        with translated(self.path):
            self._connection.close()

    @property
    def state(self) -> tuple[int, int, int]:
        """Changes with every commit of anybody, and with all that this connection does or undoes."""
        version: int = self._connection.pragma("data_version")
        return version, self._connection.total_changes(), self.n_undone

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, one within another being part of it. Nothing is written before the lock for it is had."""
        if not self.writable:
            raise InputError(f"{self.path}: opened for reading; open it with write=True")
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
                self._undo()
                raise
            finally:
                self._depth -= 1
        self.step("committed")

    def _undo(self) -> None:
        self.n_undone += 1
        if self._connection.in_transaction:  # a full disk may have ended it already
            self._connection.execute("ROLLBACK")

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One state of the index for all that is read within, whatever others write meanwhile."""
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
        """All rows of a query."""
        with translated(self.path):
            return self._connection.execute(sql, tuple(values)).fetchall()

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, one at a time."""
        with translated(self.path):
            yield from self._connection.execute(sql, tuple(values))

    def row(self, sql: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """The first row of a query, None when there is none."""
        with translated(self.path):
            return self._connection.execute(sql, tuple(values)).fetchone()

    def value(self, sql: str, values: Sequence[Any] = ()) -> Any:
        """The first column of the first row, None when there is no row."""
        found = self.row(sql, values)
        return None if found is None else found[0]

    def run(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Runs a statement and returns how many rows it changed."""
        with translated(self.path):
            self._connection.execute(sql, tuple(values))
            return self._connection.changes()

    def insert(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Runs an INSERT and returns the new row's number."""
        with translated(self.path):
            self._connection.execute(sql, tuple(values))
            return self._connection.last_insert_rowid()

    def run_many(self, sql: str, rows: Iterator[Sequence[Any]] | Sequence[Sequence[Any]]) -> None:
        """Runs a statement once for each of the rows."""
        with translated(self.path):
            self._connection.executemany(sql, rows)

    def pragma(self, name: str, *values: Any) -> Any:
        """Reads or sets a pragma."""
        with translated(self.path):
            return self._connection.pragma(name, *values)

    def read_blobs(self, table: str, column: str, ids: Sequence[int], into: memoryview, width: int) -> None:
        """Fills `into` with a column's blobs of `width` bytes in the order of `ids`: faster than a query for each."""
        if not ids:
            return
        with translated(self.path), self._connection.blob_open("main", table, column, ids[0], False) as blob:
            for offset, row in enumerate(ids):
                blob.reopen(row)
                blob.read_into(into, offset * width, width)

    def checkpoint(self) -> None:
        """Moves the log into the file and cuts it, as far as readers allow without being waited for."""
        with translated(self.path):
            self._connection.set_busy_timeout(0)
            try:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            finally:
                self._connection.set_busy_timeout(_BUSY_MS)

    @property
    def connection(self) -> apsw.Connection:
        """The connection itself, for the schema."""
        return self._connection


def require_engine(version: str) -> None:
    """Raises StorageError for an SQLite that is too old to be trusted with two processes."""
    if tuple(int(part) for part in version.split(".")) < OLDEST_ENGINE:
        oldest = ".".join(map(str, OLDEST_ENGINE))
        raise StorageError(f"SQLite {version} may lose commits, {oldest} or newer is needed: pip install -U apsw")


def _open(path: Path, write: bool, vfs: str | None) -> apsw.Connection:
    if write:
        return apsw.Connection(str(path), flags=_READ_WRITE, vfs=vfs)
    if not path.is_file():
        raise InputError(f"{path.parent}: no index there; make one first, or name its directory")
    try:  # readers share the memory of the log with the writer, so they like to write to the directory, not the file
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE, vfs=vfs)
        connection.pragma("schema_version")
    except (apsw.CantOpenError, apsw.ReadOnlyError, apsw.IOError):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY, vfs=vfs)
    return connection


def _holds(*values: object) -> bool:
    """Whether a text has the other one in it, whatever the case."""
    text, wanted = values
    return str(wanted).casefold() in str(text or "").casefold()
