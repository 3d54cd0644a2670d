"""The writer lock: an operating system lock that is always released when its process ends."""

import fcntl
import json
import os
import sys
import time
from pathlib import Path

from pplx_search.store.errors import StoreBusy

LOCK_FILE = "writer.lock"


class WriterLock:
    """Holds the writer lock of a directory from construction until `release`.

    Raises StoreBusy, naming the process that holds it, if it is taken.
    """

    def __init__(self, directory: Path):
        self.path = directory / LOCK_FILE
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(self._file)
            os.close(self._file)
            raise StoreBusy(f"{directory}: {holder} is writing to this index; wait for it or stop it") from None
        except OSError:
            os.close(self._file)
            raise
        note = {"pid": os.getpid(), "command": Path(sys.argv[0] or "python").name, "since": time.time()}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(note).encode(), 0)

    def release(self) -> None:
        """Release the lock. The file is kept: after deleting it, two writers could each lock a different file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _holder(file: int) -> str:
    """Return a description of the lock holder, from the note it writes right after taking the lock."""
    try:
        note = json.loads(os.pread(file, 4096, 0))
        since = time.strftime("%H:%M on %Y-%m-%d", time.localtime(note["since"]))
        return f"process {note['pid']} ({note['command']}, since {since})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
