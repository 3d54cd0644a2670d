"""One writer at a time: a lock of the operating system, which ends with the process whatever becomes of it."""

import fcntl
import json
import os
import sys
import time
from pathlib import Path

from pplx_search.store.errors import StoreBusy

LOCK_FILE = "writer.lock"


class WriterLock:
    """Holds a directory's lock from its making until `release`.

    Raises StoreBusy naming the process that holds it.
    """

    def __init__(self, directory: Path):
        self.path = directory / LOCK_FILE
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self._file)
            os.close(self._file)
            raise StoreBusy(f"{directory}: {holder} writes to this index; wait for it, or stop it") from None
        except OSError:
            os.close(self._file)
            raise
        note = {"pid": os.getpid(), "command": Path(sys.argv[0] or "python").name, "since": time.time()}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(note).encode(), 0)

    def release(self) -> None:
        """Lets the next writer in; the file stays, as removing it would let two writers hold two files."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _holder(file: int) -> str:
    """Who holds the lock, as far as its note can be read: it is written just after the lock is taken."""
    try:
        note = json.loads(os.pread(file, 4096, 0))
        since = time.strftime("%H:%M on %Y-%m-%d", time.localtime(note["since"]))
        return f"process {note['pid']} ({note['command']}, since {since})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
