"""What can go wrong with an index on disk, in words; errors of SQLite and of the system are translated here.

StorageError (of pplx_edge.errors)    the disk is full, or refuses to read or write
├── StoreBusy                         another process writes to this index
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
    """The index cannot be read as one."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns errors of SQLite and of the system into ones that name the file and the next move."""
    try:
        yield
    except apsw.FullError as error:
        raise StorageError(f"{path}: the disk is full; free some space, nothing that was indexed is lost") from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise StoreDamaged(f"{path}: not a sound index ({error}); move it away and index again") from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise StoreBusy(
            f"{path}: another process keeps the index locked ({error}); try again when it is done"
        ) from error
    except (apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError) as error:
        raise StorageError(f"{path}: the disk refused to read or write ({error}); nothing committed is lost") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = f"{path}: the disk is full ({error.strerror}); free some space, nothing that was indexed is lost"
        else:
            what = f"{path}: the disk refused ({error.strerror or error}); nothing committed is lost"
        raise StorageError(what) from error
