"""Errors of an index on disk, translated from errors of SQLite and the operating system.

StorageError (of pplx_edge.errors)    the disk is full or cannot be read or written
├── StoreBusy                         another process is writing to this index
└── StoreDamaged                      the file is not an index, is damaged, or comes from a newer release
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from pplx_edge.errors import StorageError


class StoreBusy(StorageError):
    """Another process holds the index for writing."""


class StoreDamaged(StorageError):
    """The file is damaged, or not an index that this release can read."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Translate errors of SQLite and the system into ones that name the file and say what to do."""
    try:
        yield
    except apsw.FullError as error:
        raise StorageError(f"{path}: the disk is full; free up space; nothing indexed so far is lost") from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise StoreDamaged(f"{path}: not a valid index ({error}); move it away and index again") from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StoreBusy(
            f"{path}: another process has locked the index ({error}); try again when it has finished"
        ) from error
    except (apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError) as error:
        raise StorageError(
            f"{path}: the disk cannot be read or written ({error}); nothing committed is lost"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = f"{path}: the disk is full ({error.strerror}); free up space; nothing indexed so far is lost"
        else:
            what = f"{path}: the disk cannot be read or written ({error.strerror or error}); nothing committed is lost"
        raise StorageError(what) from error
