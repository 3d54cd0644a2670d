"""Files: scan them, stage and publish their documents, and record their state."""

import os
import time
from collections.abc import Iterator, Sequence

from pplx_edge.errors import InputError
from pplx_search.documents import Document
from pplx_search.store import documents
from pplx_search.store.database import Database
from pplx_search.store.texts import Texts
from pplx_search.store.values import FileFacts, FileReport, FileState, Seen, Staged
from pplx_search.store.vectors import SERVING

_SETTLED = {"indexed": FileState.UNCHANGED, "failed": FileState.FAILED, "skipped": FileState.SKIPPED}
_FACTS = "size = ?, mtime_ns = ?, inode = ?, device = ?"


class Files:
    """The files of an index.

    To index a file, call `begin`, `stage` for each of its documents, and `finish`, in transactions of your choice, and
    append the vectors of its texts in between. Documents of a new file become searchable as soon as they have vectors.
    Those of a new version stay hidden until `finish` replaces the old version in one step.
    """

    def __init__(self, database: Database, texts: Texts):
        self._database, self._texts = database, texts

    def scan(self, root: int) -> "Scan":
        """Start a scan of a root, to which the caller reports each file."""
        return Scan(self._database, root)

    def adopt(self, file: int, facts: FileFacts, sha256: bytes) -> bool:
        """Mark a file as indexed if its content is already in the index under the same file type. Returns success."""
        with self._database.transaction():
            candidates = self._database.rows(
                "SELECT id, path FROM files WHERE sha256 = ? AND complete AND state IN ('indexed', 'pending')"
                " ORDER BY id <> ?",
                (sha256, file),
            )
            for source, path in candidates:
                if source == file or _suffix(path) == _suffix(facts.path):
                    if source != file:
                        documents.copy(self._database, source, file)
                    self._drop_hidden(file)
                    self._settle(file, facts, "indexed", sha256)
                    return True
        return False

    def begin(self, file: int) -> None:
        """Begin staging the documents of a file; they replace those of an unfinished attempt one by one."""
        with self._database.transaction():
            if not self._database.run("UPDATE files SET state = 'pending', round = round + 1 WHERE id = ?", (file,)):
                raise InputError(f"file {file} is no longer in the index; scan again")

    def stage(self, file: int, document: Document, digest: bytes) -> Staged:
        """Stage a document of a file after `begin`. `digest` identifies its text (see `content_digest`)."""
        with self._database.transaction():
            number, complete = self._round(file)
            content = self._database.value("SELECT id FROM contents WHERE digest = ?", (digest,))
            known = content is not None
            if content is None:
                content = self._texts.add(digest, document.text_format, document.pieces)
            found = documents.put(self._database, file, content, document, live=not complete, number=number)
            return Staged(found, content, known)

    def finish(self, file: int, facts: FileFacts, sha256: bytes) -> None:
        """Publish the staged documents of a file, and delete those of its previous version.

        Raises InputError if one of their texts has no complete vectors.
        """
        with self._database.transaction():
            number, _ = self._round(file)
            lacking = self._database.value(
                "SELECT count(*) FROM documents WHERE file = ? AND round = ? AND NOT EXISTS (SELECT 1 FROM embeddings"
                " JOIN generations ON generations.id = generation WHERE embeddings.content = documents.content"
                " AND state = ? AND complete)",
                (file, number, SERVING),
            )
            if lacking:
                raise InputError(
                    f"{os.fsdecode(facts.path)}: {lacking} of its documents have no vectors yet; embed them first"
                )
            documents.publish(self._database, file, number)
            self._settle(file, facts, "indexed", sha256)
            self._database.step("file finished")

    def fail(self, file: int, facts: FileFacts, sha256: bytes | None, code: str, message: str) -> int:
        """Record why a file could not be indexed, and return the number of failed attempts at this version.

        A previously indexed version stays searchable; staged documents of this version are deleted.
        """
        with self._database.transaction():
            row = self._database.row(
                "SELECT attempts, complete, tried, size, mtime_ns, inode FROM files WHERE id = ?", (file,)
            )
            if row is None:
                raise InputError(f"file {file} is no longer in the index; scan again")
            attempts, complete, tried, *before = row
            same = tried == sha256 if sha256 else before == [facts.size, facts.mtime_ns, facts.inode]
            attempts = attempts + 1 if same else 1
            if complete:
                self._drop_hidden(file)
            else:
                documents.drop_of_file(self._database, file)
            self._database.run(
                f"UPDATE files SET {_FACTS}, state = 'failed', tried = ?, code = ?, message = ?, attempts = ?, time = ?"
                " WHERE id = ?",
                (*_columns(facts), sha256, code, _printable(message), attempts, time.time(), file),
            )
        return attempts

    def retry(self, states: Sequence[FileState] = (FileState.FAILED,)) -> int:
        """Make the next scan treat files in these states as changed, and return their number."""
        names = [name for name, state in _SETTLED.items() if state in states]
        with self._database.transaction():
            marks = ", ".join("?" * len(names))
            return self._database.run(f"UPDATE files SET mtime_ns = -1 WHERE state IN ({marks})", names)

    def remove(self, path: bytes, root: int | None = None) -> int:
        """Delete the file at a path, or all files below it, from one root or all. Returns the number of files."""
        with self._database.transaction():
            found = self._database.rows(
                "SELECT id FROM files WHERE root IN (SELECT id FROM roots WHERE ? IN (id, 0))"
                " AND (path = ? OR (path >= ? AND path < ?))",
                (root or 0, path, *below(path)),
            )
            for (file,) in found:
                forget(self._database, file)
        return len(found)

    def reports(self, states: Sequence[FileState] = (), limit: int = -1) -> Iterator[FileReport]:
        """Yield files with their states and reasons, sorted by path: those in the given states, or all."""
        names = [
            state for state in ("indexed", "pending", "failed", "skipped") if not states or _shown(state) in states
        ]
        rows = self._database.each(
            "SELECT files.path, name, state, code, message, attempts, time FROM files JOIN roots ON roots.id = root"
            f" JOIN collections ON collections.id = collection WHERE state IN ({', '.join('?' * len(names))})"
            " ORDER BY files.path, name LIMIT ?",
            (*names, limit),
        )
        for path, name, state, code, message, attempts, when in rows:
            yield FileReport(
                path=path,
                collection=name,
                state=_shown(state),
                code=code,
                message=message,
                attempts=attempts,
                time=when,
            )

    def _round(self, file: int) -> tuple[int, bool]:
        row = self._database.row("SELECT round, complete FROM files WHERE id = ? AND state = 'pending'", (file,))
        if row is None:
            raise InputError(f"file {file} was not begun, or is no longer in the index")
        return row[0], bool(row[1])

    def _settle(self, file: int, facts: FileFacts, state: str, sha256: bytes) -> None:
        self._database.run(
            f"UPDATE files SET {_FACTS}, state = ?, sha256 = ?, complete = 1, tried = NULL, code = '', message = '',"
            " attempts = 0, time = ? WHERE id = ?",
            (*_columns(facts), state, sha256, time.time(), file),
        )

    def _drop_hidden(self, file: int) -> None:
        hidden = self._database.rows("SELECT id FROM documents WHERE file = ? AND NOT live", (file,))
        documents.drop(self._database, [row[0] for row in hidden])


class Scan:
    """A scan of a root: report each file with `see` or `skip`, then delete the rest with `forget_unseen`.

    Unchanged files cause no writes.
    """

    def __init__(self, database: Database, root: int):
        if database.value("SELECT id FROM roots WHERE id = ?", (root,)) is None:
            raise InputError(f"root {root} is no longer in the index")
        self._database, self.root = database, root
        self._seen = bytearray()  # one bit per file id

    def see(self, facts: FileFacts) -> Seen:
        """Report an existing file and return its state. A file that must be read is marked as pending."""
        row = self._database.row(
            "SELECT id, size, mtime_ns, inode, state, attempts, code FROM files WHERE root = ? AND path = ?",
            (self.root, facts.path),
        )
        if row is None:
            found = self._moved(facts) or Seen(self._insert(facts, "pending"), FileState.NEW)
            self._mark(found.file)
            return found
        file, size, mtime_ns, inode, state, attempts, code = row
        self._mark(file)
        if (size, mtime_ns, inode) == (facts.size, facts.mtime_ns, facts.inode):
            return Seen(file, _SETTLED.get(state, FileState.PENDING), attempts, code)
        if state != "pending":
            self._write("UPDATE files SET state = 'pending' WHERE id = ?", (file,))
        return Seen(file, FileState.CHANGED)

    def skip(self, facts: FileFacts, code: str, message: str) -> None:
        """Record why a file or folder is skipped, and delete its documents."""
        row = self._database.row(
            "SELECT id, state, code, message, size, mtime_ns, inode FROM files WHERE root = ? AND path = ?",
            (self.root, facts.path),
        )
        with self._database.transaction():
            file = row[0] if row else self._insert(facts, "skipped")
            if row is None or row[1:] != ("skipped", code, message, facts.size, facts.mtime_ns, facts.inode):
                documents.drop_of_file(self._database, file)
                self._database.run(
                    f"UPDATE files SET {_FACTS}, state = 'skipped', code = ?, message = ?, complete = 0, sha256 = NULL,"
                    " attempts = 0, time = ? WHERE id = ?",
                    (*_columns(facts), code, _printable(message), time.time(), file),
                )
        self._mark(file)

    def forget_unseen(self, *, even_all: bool = False) -> list[bytes]:
        """Delete the files of the root that this scan did not report, and return their paths.

        Call this only after a complete scan. An empty scan deletes nothing unless `even_all` is set, since the root
        might just not be mounted.
        """
        if not self._seen and not even_all:
            return []
        known = self._database.rows("SELECT id, path FROM files WHERE root = ?", (self.root,))
        gone = [(file, path) for file, path in known if not self._is_marked(file)]
        if gone:
            with self._database.transaction():
                for file, _ in gone:
                    forget(self._database, file)
        return [path for _, path in gone]

    def _moved(self, facts: FileFacts) -> Seen | None:
        """Return the file under its new name if it was indexed under another one with the same file type."""
        if not facts.inode:
            return None
        candidates = self._database.rows(
            "SELECT id, path FROM files WHERE inode = ? AND device = ? AND size = ? AND mtime_ns = ?"
            " AND state = 'indexed' AND complete",
            (facts.inode, facts.device, facts.size, facts.mtime_ns),
        )
        for source, path in candidates:
            if _suffix(path) != _suffix(facts.path):
                continue
            with self._database.transaction():
                if os.path.lexists(path):  # a hard link, or a root inside another root
                    file = self._insert(facts, "pending")
                    documents.copy(self._database, source, file)
                    self._database.run(
                        "UPDATE files SET (state, sha256, complete, time) ="
                        " (SELECT state, sha256, complete, time FROM files WHERE id = ?) WHERE id = ?",
                        (source, file),
                    )
                    return Seen(file, FileState.MOVED)
                self._database.run("UPDATE files SET root = ?, path = ? WHERE id = ?", (self.root, facts.path, source))
                for (document,) in self._database.rows("SELECT id FROM documents WHERE file = ? AND live", (source,)):
                    documents.index_name(self._database, document)
                return Seen(source, FileState.MOVED)
        return None

    def _insert(self, facts: FileFacts, state: str) -> int:
        with self._database.transaction():
            return self._database.insert(
                "INSERT INTO files(root, path, size, mtime_ns, inode, device, state) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self.root, facts.path, *_columns(facts), state),
            )

    def _write(self, sql: str, values: Sequence[object]) -> None:
        with self._database.transaction():
            self._database.run(sql, values)

    def _mark(self, file: int) -> None:
        if file // 8 >= len(self._seen):
            self._seen.extend(bytes(file // 8 + 1 - len(self._seen)))
        self._seen[file // 8] |= 1 << file % 8

    def _is_marked(self, file: int) -> bool:
        return file // 8 < len(self._seen) and bool(self._seen[file // 8] >> file % 8 & 1)


def forget(database: Database, file: int) -> None:
    """Delete a file and its documents."""
    documents.drop_of_file(database, file)
    database.run("DELETE FROM files WHERE id = ?", (file,))


def below(folder: bytes) -> tuple[bytes, bytes]:
    """Return the range `[first, last)` that contains all paths below a folder."""
    stem = folder.rstrip(b"/")
    return stem + b"/", stem + b"0"  # the next byte after the slash


def _columns(facts: FileFacts) -> tuple[int, int, int, int]:
    return facts.size, facts.mtime_ns, facts.inode, facts.device


def _suffix(path: bytes) -> bytes:
    return os.path.splitext(path)[1].lower()


def _shown(state: str) -> FileState:
    return _SETTLED.get(state, FileState.PENDING)


def _printable(message: str) -> str:
    """Return the message with lone surrogates replaced, which SQLite does not accept."""
    return message.encode("utf-8", "replace").decode()
