"""Full and failing disks, damaged files, concurrent processes and other versions: the errors, and what remains."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw
import killed_writer
import pytest
from small_index import Basket, make_codes, make_text

from pplx_edge.errors import InputError, StorageError
from pplx_search.store import NullBaseline, Query, Store, StoreBusy, StoreDamaged, schema
from pplx_search.store import database as database_module
from pplx_search.store.database import DATABASE_FILE, require_engine

LONG = make_text(1, 400)


def fill(store: Store, n_files: int = 5) -> Basket:
    basket = Basket(store)
    for number in range(n_files):
        basket.add(f"/home/{number}.txt", make_text(number, 60))
    return basket


def answer(store: Store) -> list[tuple[int, float | None]]:
    return [
        (hit.chunk_id, hit.cosine) for hit in store.search(Query(codes=make_codes("x", 0, "x"), words="kiwi", k=999))
    ]


# The bits file


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(position: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[position] ^= 1
        path.write_bytes(content)

    return change


def zero_page(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[64:1024] = bytes(960)
    path.write_bytes(content)


DAMAGE = {
    "lost": Path.unlink,
    "cut": cut,
    "empty": empty,
    "magic": flip(0),
    "epoch": flip(17),
    "dim": flip(24),
    "header checksum": flip(29),
    "first row": flip(64),
    "last row": flip(-1),
    "a page that was never written": zero_page,
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_bits_file_is_rebuilt(tmp_path: Path, how: str):
    with Store.open(tmp_path, write=True) as store:
        fill(store)
        expected = answer(store)
    (bits,) = tmp_path.glob("bits-*")
    sound = bits.read_bytes()
    DAMAGE[how](bits)
    with Store.open(tmp_path) as reader:
        assert answer(reader) == expected
        assert "rebuilt in memory" in reader.status().remarks[0]
        assert reader.check() != []
    with Store.open(tmp_path, write=True) as store:
        assert store.check() == []
        assert store.status().remarks == ()
        assert answer(store) == expected
    assert bits.read_bytes() == sound


def test_bits_files_without_a_generation_are_removed(tmp_path: Path):
    with Store.open(tmp_path, write=True) as store:
        fill(store)
    (tmp_path / "bits-7-1.bin").write_bytes(b"old")
    (tmp_path / "bits-1-2.partial").write_bytes(b"half")
    Store.open(tmp_path, write=True).close()
    assert [path.name for path in tmp_path.glob("bits-*")] == ["bits-1-1.bin"]


def test_a_reader_of_an_earlier_state_is_not_affected_by_compaction(tmp_path: Path):
    with Store.open(tmp_path, write=True) as store, Store.open(tmp_path) as reader:
        fill(store, 30)
        before = answer(reader)
        store.files.remove(b"/home/3.txt")
        with reader._database.reading():
            old = answer(reader)
            assert len(old) < len(before)
            for number in range(4, 28):
                store.files.remove(f"/home/{number}.txt".encode())
            assert store.compact().slots > 256
            assert answer(reader) == old
        assert len(answer(reader)) < len(old) / 2
        assert store.check() == reader.check() == []


# The database


class Faults(apsw.VFS):
    """A file system whose writes fail after `left` more calls."""

    def __init__(self, name: str, error: type[apsw.Error]):
        self.left, self.error = 10**9, error
        super().__init__(name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> "FaultyFile":
        return FaultyFile(self, name, flags)

    def count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error


class FaultyFile(apsw.VFSFile):
    def __init__(self, faults: Faults, name: str | apsw.URIFilename | None, flags: list[int]):
        self.faults = faults
        super().__init__("", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        self.faults.count()
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        self.faults.count()
        super().xSync(flags)


@contextmanager
def faulty(error: type[apsw.Error]) -> Iterator[Faults]:
    faults = Faults("faulty", error)
    try:
        yield faults
    finally:
        faults.unregister()


@pytest.mark.parametrize(("error", "message"), [(apsw.FullError, "disk is full"), (apsw.IOError, "disk cannot be")])
def test_a_disk_that_fails_at_any_write_loses_nothing(tmp_path: Path, error: type[apsw.Error], message: str):
    def change(basket: Basket, number: int) -> None:
        basket.add(f"/home/new-{number}.txt", make_text(number, 100))
        basket.store.files.remove(b"/home/0.txt")
        basket.store.compact()

    with faulty(error) as faults:
        for calls in (0, 1, 2, 3, 5, 8, 13, 30, 70):
            with Store.open(tmp_path, write=True, vfs="faulty") as store:
                basket = Basket(store)
                basket.add("/home/0.txt", make_text(0, 50))
                expected = texts(store)
                faults.left = calls
                with pytest.raises(StorageError, match=message):
                    change(basket, calls)
                faults.left = 10**9
                assert store.check() == []
                assert expected - {make_text(0, 50)} <= texts(store)
                change(basket, calls)
                assert texts(store) == expected - {make_text(0, 50)} | {make_text(calls, 100)}
            with Store.open(tmp_path, vfs="faulty") as reader:
                assert reader.check() == []


def texts(store: Store) -> set[str]:
    """Return the texts of all complete documents."""
    return {store.read(each.text_id) for each in store.documents() if each.complete}


def test_a_database_that_cannot_grow_reports_that_the_disk_is_full(tmp_path: Path):
    with Store.open(tmp_path, write=True) as store:
        basket = fill(store)
        expected = answer(store)
        pages = store._database.pragma("page_count")
        store._database.pragma("max_page_count", pages + 2)
        with pytest.raises(StorageError, match=r"index\.sqlite: the disk is full; free up space; nothing"):
            basket.add("/home/long.txt", make_text(7, 20_000))
        assert set(expected) <= set(answer(store))
        assert store.check() == []
        store._database.pragma("max_page_count", 10**6)
        assert basket.add("/home/late.txt", LONG).value == "new"
        assert store.check() == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from small_index import Basket, make_text
from pplx_edge.errors import StorageError
from pplx_search.store import Store
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Store.open({directory!r}, write=True) as store:
    basket = Basket(store)
    size = next(Path({directory!r}).glob("bits-*")).stat().st_size
    store._database.pragma("wal_autocheckpoint", 0)
    basket.add("/home/fits.txt", "kiwi")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 64, resource.RLIM_INFINITY))
    try:
        basket.add("/home/long.txt", make_text(1, 400))
    except StorageError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(store.check())
"""


def test_a_file_size_limit_rolls_back_the_transaction(tmp_path: Path):
    with Store.open(tmp_path, write=True) as store:
        fill(store)
        expected = answer(store)
    program = LIMITED.format(tests=str(Path(__file__).parent), directory=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    said, checked = done.stdout.splitlines()
    assert "nothing" in said
    assert checked == "[]"
    with Store.open(tmp_path, write=True) as store:
        assert store.check() == []
        assert set(expected) <= set(answer(store))


def test_a_partial_write_of_bits_rolls_back_the_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with Store.open(tmp_path, write=True) as store:
        basket = fill(store)
        expected, write = answer(store), os.pwrite

        def fill_up(file: int, data: memoryview, offset: int) -> int:
            if len(data) < 40:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, data[: len(data) // 2], offset)

        monkeypatch.setattr(os, "pwrite", fill_up)
        with pytest.raises(StorageError, match=r"bits-1-1\.bin: the disk is full \(No space left on device\)"):
            basket.add("/home/long.txt", LONG)
        monkeypatch.undo()
        assert answer(store) == expected
        assert store.check() == []
        basket.add("/home/long.txt", LONG)
        assert store.check() == []


@pytest.mark.parametrize("content", [b"no database at all, " * 300, b"SQLite format 3\0" + os.urandom(8000)])
def test_a_file_that_is_not_an_index_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / DATABASE_FILE).write_bytes(content)
    for write in (False, True):
        with pytest.raises(StoreDamaged, match=r"not a valid index .* move it away and index again"):
            Store.open(tmp_path, write=write)


def test_a_database_of_another_program_is_refused(tmp_path: Path):
    other = sqlite3.connect(tmp_path / DATABASE_FILE)
    other.execute("CREATE TABLE mine(x)")
    other.close()
    with pytest.raises(StoreDamaged, match="this database belongs to another program; choose another directory"):
        Store.open(tmp_path, write=True)


def test_check_describes_each_problem(tmp_path: Path):
    with Store.open(tmp_path, write=True) as store:
        fill(store)
        database = store._database
        for statement, expected in (
            ("DELETE FROM words_1 WHERE rowid = 2", "chunks missing from the full-text index: 2"),
            ("INSERT INTO words_1(rowid, text) VALUES (9999, 'x')", "full-text rows without a chunk: 9999"),
            ("UPDATE chunks SET codes = zeroblob(128) WHERE id = 3", "not match the signs of the vectors from chunk 1"),
            ("DELETE FROM chunks WHERE id = 4", "runs with missing chunks: 1"),
            ("UPDATE blocks SET data = x'00' WHERE content = 1", "text 1, block 0 cannot be read"),
            ("UPDATE embeddings SET complete = 0 WHERE id = 2", "files with missing vectors"),
            ("DELETE FROM names WHERE rowid = 1", "missing from the name index: 1"),
            ("DELETE FROM runs WHERE first_chunk = 1", "chunks without a run"),
        ):
            with suppress(KeyboardInterrupt), database.transaction():
                database.run(statement)
                assert expected in "\n".join(store.check())
                raise KeyboardInterrupt
        assert store.check() == []


# Two processes


def test_a_second_writer_gets_an_error_that_names_the_first(tmp_path: Path):
    with (
        Store.open(tmp_path, write=True),
        pytest.raises(StoreBusy, match=rf"process {os.getpid()} \(.*, since .*\) is"),
    ):
        Store.open(tmp_path, write=True)
    Store.open(tmp_path, write=True).close()


def test_readers_see_consistent_states_while_another_process_writes(tmp_path: Path):
    writer = subprocess.Popen(
        [sys.executable, killed_writer.__file__, str(tmp_path), "5"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        with pytest.raises(StoreBusy, match=rf"process {writer.pid} \(killed_writer.py"):
            Store.open(tmp_path, write=True)
        with Store.open(tmp_path, kernel="numpy") as reader:
            for _ in range(40):
                with reader._database.reading():
                    found = {
                        hit.chunk_id for hit in reader.search(Query(codes=make_codes("x", 0, "x"), k=9999, depth=9999))
                    }
                    live = {chunk.id for each in reader.documents() for chunk in reader.chunks(each.text_id)}
                    assert found == live
                    # Only the bits file may differ, because the writer may be in a later epoch.
                    assert [problem for problem in reader.check() if "bits" not in problem] == []
    finally:
        writer.kill()
        writer.communicate()


def test_a_reader_needs_an_index(tmp_path: Path):
    with pytest.raises(InputError, match="no index found; create one first"):
        Store.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_reader_does_not_write(tmp_path: Path):
    Store.open(tmp_path, write=True).close()
    with Store.open(tmp_path) as reader, pytest.raises(InputError, match="opened for reading"):
        reader.collections.add("home")


# Versions


@pytest.mark.parametrize("version", range(1, len(schema.MIGRATIONS)))
def test_an_index_of_an_earlier_version_can_be_read_and_is_migrated_by_a_writer(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as earlier:
        earlier.setattr(database_module, "migrate", lambda file: schema.migrate(file, schema.MIGRATIONS[:version]))
        with Store.open(tmp_path, write=True) as store:
            basket = fill(store)
            expected = answer(store)
    assert version_of(tmp_path) == version
    with Store.open(tmp_path) as store:
        assert answer(store) == expected
        assert store.vectors.null_baseline(basket.generation) is None
    with Store.open(tmp_path, write=True) as store:
        assert answer(store) == expected
        assert store.check() == []
    assert version_of(tmp_path) == len(schema.MIGRATIONS)


def test_a_null_baseline_keeps_its_names_in_the_database(tmp_path: Path):
    stored = (
        '{"n_chunks": 7, "n_sentences": 5, "prominence": 3.5, "prominence_spread": 0.5,'
        ' "share_of_words": 0.25, "share_of_words_spread": 0.125}'
    )
    expected = NullBaseline(
        n_chunks=7, n_sentences=5, cosine_z_mean=3.5, cosine_z_std=0.5, bm25_share_mean=0.25, bm25_share_std=0.125
    )
    with Store.open(tmp_path, write=True) as store:
        generation = fill(store).generation
        with store.transaction():
            store._database.run("INSERT INTO yardsticks(generation, figures) VALUES (?, ?)", (generation.id, stored))
        assert store.vectors.null_baseline(generation) == expected
        store.vectors.set_null_baseline(generation, expected)
        assert json.loads(store._database.value("SELECT figures FROM yardsticks")) == json.loads(stored)


def test_a_failed_migration_step_leaves_the_previous_version(tmp_path: Path):
    with Store.open(tmp_path, write=True) as store:
        fill(store)
        expected = answer(store)

    def add_column(database: apsw.Connection) -> None:
        database.execute("ALTER TABLE files ADD COLUMN note TEXT NOT NULL DEFAULT 'none'")

    def break_off(database: apsw.Connection) -> None:
        database.execute("ALTER TABLE files ADD COLUMN never TEXT")
        raise apsw.FullError("database or disk is full")

    path, known = str(tmp_path / DATABASE_FILE), len(schema.MIGRATIONS)
    newer = (*schema.MIGRATIONS, add_column)
    with pytest.raises(apsw.FullError):
        schema.migrate(apsw.Connection(path), (*newer, break_off))
    database = apsw.Connection(path)
    assert database.pragma("user_version") == known + 1
    assert database.execute("SELECT DISTINCT note FROM files").fetchall() == [("none",)]
    assert "never" not in [row[1] for row in database.execute("PRAGMA table_info(files)")]
    schema.migrate(database, newer)
    database.close()
    refusal = f"index version {known + 1}, but this release reads up to {known}; update pplx-edge"
    with pytest.raises(StoreDamaged, match=refusal):
        Store.open(tmp_path, write=True)
    database = apsw.Connection(path)
    database.pragma("user_version", known)
    database.close()
    with Store.open(tmp_path) as store:
        assert answer(store) == expected


def version_of(directory: Path) -> int:
    """Return the version of an index."""
    database = apsw.Connection(str(directory / DATABASE_FILE))
    try:
        return database.pragma("user_version")
    finally:
        database.close()


def test_an_old_sqlite_is_refused():
    require_engine("3.51.3")
    with pytest.raises(StorageError, match=r"SQLite 3\.50\.4 may lose commits; install 3\.51\.3 or newer: pip install"):
        require_engine("3.50.4")


# Space


def test_deleting_gives_the_space_back(tmp_path: Path):
    with Store.open(tmp_path, write=True) as store:
        basket = fill(store, 3)
        store.compact()
        small = sum(path.stat().st_size for path in tmp_path.iterdir())
        with store.transaction():
            for number in range(100, 160):
                basket.add(f"/home/{number}.txt", make_text(number, 800))
        store.files.remove(b"/home")
        fill(store, 3)
        compacted = store.compact()
        assert compacted.texts == 60
        assert compacted.slots > 5000
        assert compacted.bytes_after < compacted.bytes_before / 4
        assert store.check() == []
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1.3 * small
