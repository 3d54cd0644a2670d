"""Files: scan them, stage and publish their documents, and record their state."""

import os
import time
from collections.abc import Iterator, Sequence

from pplx_edge.errors import InputError
from pplx_search.documents import Document
from pplx_search.ids import FileId
from pplx_search.query.full_text import without_surrogates
from pplx_search.store import document_rows
from pplx_search.store.database import Database
from pplx_search.store.texts import Texts
from pplx_search.store.values import FileFacts, FileReport, FileState, ScannedFile, StagedDocument
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

    def scan(self, root_id: int) -> "Scan":
        """Return a new scan of a root, to which the caller reports each file."""
        return Scan(self._database, root_id)

    def adopt(self, file_id: FileId, facts: FileFacts, sha256: bytes) -> bool:
        """Mark a file as indexed if its content is already in the index under the same file type.

        Returns True if it was.
        """
        with self._database.transaction():
            candidates = self._database.rows(
                "SELECT id, path FROM files WHERE sha256 = ? AND complete AND state IN ('indexed', 'pending')"
                " ORDER BY id <> ?",
                (sha256, file_id),
            )
            for source, path in candidates:
                if source == file_id or _suffix(path) == _suffix(facts.path):
                    if source != file_id:
                        document_rows.copy(self._database, source, file_id)
                    self._drop_hidden(file_id)
                    self._settle(file_id, facts, "indexed", sha256)
                    return True
        return False

    def begin(self, file_id: FileId) -> None:
        """Begin a round of staging the documents of a file. They replace those of an unfinished round one by one."""
        with self._database.transaction():
            if not self._database.run("UPDATE files SET state = 'pending', round = round + 1 WHERE id = ?", (file_id,)):
                raise InputError(f"file {file_id} is no longer in the index; scan again")

    def stage(self, file_id: FileId, document: Document, digest: bytes) -> StagedDocument:
        """Stage a document of a file after `begin`. `digest` identifies its text (see `text_digest`)."""
        with self._database.transaction():
            round_number, complete = self._round(file_id)
            text_id = self._database.value("SELECT id FROM contents WHERE digest = ?", (digest,))
            known = text_id is not None
            if text_id is None:
                text_id = self._texts.add(digest, document.markup, document.pieces)
            document_id = document_rows.put(
                self._database, file_id, text_id, document, live=not complete, round_number=round_number
            )
            return StagedDocument(document_id, text_id, known)

    def finish(self, file_id: FileId, facts: FileFacts, sha256: bytes) -> None:
        """Publish the staged documents of a file, and delete those of its previous version.

        Raises InputError if one of their texts has no complete vectors.
        """
        with self._database.transaction():
            round_number, _ = self._round(file_id)
            lacking = self._database.value(
                "SELECT count(*) FROM documents WHERE file = ? AND round = ? AND NOT EXISTS (SELECT 1 FROM embeddings"
                " JOIN generations ON generations.id = generation WHERE embeddings.content = documents.content"
                " AND state = ? AND complete)",
                (file_id, round_number, SERVING),
            )
            if lacking:
                raise InputError(
                    f"{os.fsdecode(facts.path)}: {lacking} of its documents have no vectors yet; embed them first"
                )
            document_rows.publish(self._database, file_id, round_number)
            self._settle(file_id, facts, "indexed", sha256)
            self._database.step("file finished")

    def fail(self, file_id: FileId, facts: FileFacts, sha256: bytes | None, code: str, message: str) -> int:
        """Record why a file could not be indexed, and return the number of failed attempts at this version.

        A previously indexed version stays searchable; staged documents of this version are deleted.
        """
        with self._database.transaction():
            row = self._database.row(
                "SELECT attempts, complete, tried, size, mtime_ns, inode FROM files WHERE id = ?", (file_id,)
            )
            if row is None:
                raise InputError(f"file {file_id} is no longer in the index; scan again")
            attempts, complete, tried, *before = row
            same = tried == sha256 if sha256 else before == [facts.size, facts.mtime_ns, facts.inode]
            attempts = attempts + 1 if same else 1
            if complete:
                self._drop_hidden(file_id)
            else:
                document_rows.drop_of_file(self._database, file_id)
            self._database.run(
                f"UPDATE files SET {_FACTS}, state = 'failed', tried = ?, code = ?, message = ?, attempts = ?, time = ?"
                " WHERE id = ?",
                (*_columns(facts), sha256, code, without_surrogates(message), attempts, time.time(), file_id),
            )
        return attempts

    def remove(self, path: bytes) -> int:
        """Delete the file at a path, or all files inside it. Returns the number of deleted files."""
        with self._database.transaction():
            found = self._database.rows(
                "SELECT id FROM files WHERE path = ? OR (path >= ? AND path < ?)", (path, *inside(path))
            )
            for (file_id,) in found:
                forget(self._database, file_id)
        return len(found)

    def reports(self, states: Sequence[FileState]) -> Iterator[FileReport]:
        """Yield the files in some states with the reason why they are not indexed, sorted by path."""
        names = [state for state in ("indexed", "pending", "failed", "skipped") if _file_state(state) in states]
        rows = self._database.each(
            "SELECT files.path, name, state, code, message, attempts, time FROM files JOIN roots ON roots.id = root"
            f" JOIN collections ON collections.id = collection WHERE state IN ({', '.join('?' * len(names))})"
            " ORDER BY files.path, name",
            names,
        )
        for path, name, state, code, message, attempts, when in rows:
            yield FileReport(
                path=path,
                collection=name,
                state=_file_state(state),
                code=code,
                message=message,
                attempts=attempts,
                time=when,
            )

    def _round(self, file_id: FileId) -> tuple[int, bool]:
        row = self._database.row("SELECT round, complete FROM files WHERE id = ? AND state = 'pending'", (file_id,))
        if row is None:
            raise InputError(f"file {file_id} was not begun, or is no longer in the index")
        return row[0], bool(row[1])

    def _settle(self, file_id: FileId, facts: FileFacts, state: str, sha256: bytes) -> None:
        self._database.run(
            f"UPDATE files SET {_FACTS}, state = ?, sha256 = ?, complete = 1, tried = NULL, code = '', message = '',"
            " attempts = 0, time = ? WHERE id = ?",
            (*_columns(facts), state, sha256, time.time(), file_id),
        )

    def _drop_hidden(self, file_id: FileId) -> None:
        hidden = self._database.rows("SELECT id FROM documents WHERE file = ? AND NOT live", (file_id,))
        document_rows.drop(self._database, [row[0] for row in hidden])


class Scan:
    """A scan of a root: report each file with `see` or `skip`, then delete the rest with `forget_unseen`.

    Unchanged files cause no writes.
    """

    def __init__(self, database: Database, root_id: int):
        if database.value("SELECT id FROM roots WHERE id = ?", (root_id,)) is None:
            raise InputError(f"root {root_id} is no longer in the index")
        self._database, self.root_id = database, root_id
        self._seen = bytearray()  # one bit per file id

    def see(self, facts: FileFacts) -> ScannedFile:
        """Report an existing file and return its state. A file that must be read is marked as pending."""
        row = self._database.row(
            "SELECT id, size, mtime_ns, inode, state, attempts, code FROM files WHERE root = ? AND path = ?",
            (self.root_id, facts.path),
        )
        if row is None:
            found = self._moved(facts) or ScannedFile(self._insert(facts, "pending"), FileState.NEW)
            self._mark(found.file_id)
            return found
        file_id, size, mtime_ns, inode, state, attempts, code = row
        self._mark(file_id)
        if (size, mtime_ns, inode) == (facts.size, facts.mtime_ns, facts.inode):
            return ScannedFile(file_id, _SETTLED.get(state, FileState.PENDING), attempts, code)
        if state != "pending":
            self._write("UPDATE files SET state = 'pending' WHERE id = ?", (file_id,))
        return ScannedFile(file_id, FileState.CHANGED)

    def skip(self, facts: FileFacts, code: str, message: str) -> None:
        """Record why a file or folder is skipped, and delete its documents."""
        row = self._database.row(
            "SELECT id, state, code, message, size, mtime_ns, inode FROM files WHERE root = ? AND path = ?",
            (self.root_id, facts.path),
        )
        with self._database.transaction():
            file_id = row[0] if row else self._insert(facts, "skipped")
            if row is None or row[1:] != ("skipped", code, message, facts.size, facts.mtime_ns, facts.inode):
                document_rows.drop_of_file(self._database, file_id)
                self._database.run(
                    f"UPDATE files SET {_FACTS}, state = 'skipped', code = ?, message = ?, complete = 0, sha256 = NULL,"
                    " attempts = 0, time = ? WHERE id = ?",
                    (*_columns(facts), code, without_surrogates(message), time.time(), file_id),
                )
        self._mark(file_id)

    def forget_unseen(self, *, even_all: bool = False) -> list[bytes]:
        """Delete the files of the root that this scan did not report, and return their paths.

        Call this only after a complete scan. An empty scan deletes nothing unless `even_all` is set, since the root
        might just not be mounted.
        """
        if not self._seen and not even_all:
            return []
        known = self._database.rows("SELECT id, path FROM files WHERE root = ?", (self.root_id,))
        unseen = [(file_id, path) for file_id, path in known if not self._is_marked(file_id)]
        if unseen:
            with self._database.transaction():
                for file_id, _ in unseen:
                    forget(self._database, file_id)
        return [path for _, path in unseen]

    def _moved(self, facts: FileFacts) -> ScannedFile | None:
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
                    file_id = self._insert(facts, "pending")
                    document_rows.copy(self._database, source, file_id)
                    self._database.run(
                        "UPDATE files SET (state, sha256, complete, time) ="
                        " (SELECT state, sha256, complete, time FROM files WHERE id = ?) WHERE id = ?",
                        (source, file_id),
                    )
                    return ScannedFile(file_id, FileState.MOVED)
                self._database.run(
                    "UPDATE files SET root = ?, path = ? WHERE id = ?", (self.root_id, facts.path, source)
                )
                for (document_id,) in self._database.rows(
                    "SELECT id FROM documents WHERE file = ? AND live", (source,)
                ):
                    document_rows.index_name(self._database, document_id)
                return ScannedFile(source, FileState.MOVED)
        return None

    def _insert(self, facts: FileFacts, state: str) -> FileId:
        with self._database.transaction():
            file_id = self._database.insert(
                "INSERT INTO files(root, path, size, mtime_ns, inode, device, state) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (self.root_id, facts.path, *_columns(facts), state),
            )
        return FileId(file_id)

    def _write(self, sql: str, values: Sequence[object]) -> None:
        with self._database.transaction():
            self._database.run(sql, values)

    def _mark(self, file_id: FileId) -> None:
        if file_id // 8 >= len(self._seen):
            self._seen.extend(bytes(file_id // 8 + 1 - len(self._seen)))
        self._seen[file_id // 8] |= 1 << file_id % 8

    def _is_marked(self, file_id: FileId) -> bool:
        return file_id // 8 < len(self._seen) and bool(self._seen[file_id // 8] >> file_id % 8 & 1)


def forget(database: Database, file_id: FileId) -> None:
    """Delete a file and its documents."""
    document_rows.drop_of_file(database, file_id)
    database.run("DELETE FROM files WHERE id = ?", (file_id,))


def inside(folder: bytes) -> tuple[bytes, bytes]:
    """Return the range `[first, last)` that contains all paths inside a folder."""
    stem = folder.rstrip(b"/")
    return stem + b"/", stem + b"0"  # the next byte after the slash


def _columns(facts: FileFacts) -> tuple[int, int, int, int]:
    return facts.size, facts.mtime_ns, facts.inode, facts.device


def _suffix(path: bytes) -> bytes:
    return os.path.splitext(path)[1].lower()


def _file_state(state: str) -> FileState:
    return _SETTLED.get(state, FileState.PENDING)
