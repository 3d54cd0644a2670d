"""Replace files and directories atomically: write next to the target, flush to disk, then rename.

After a crash, the target is complete: either the previous version or the new one. Directories cannot be exchanged in a
single step, so a crash between two renames can leave the previous version under another name; `left_by_crash` finds it.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pplx_edge.errors import InputError, StorageError

_PARTIAL, _RETIRED = ".partial-", ".old-"  # followed by the id of the process, and random digits
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_WRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
)


@contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """Provide a path for a new file that replaces `target` when the block ends, or is deleted if the block raises.

    The path has the suffix of the target. Missing parent directories are created.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target, _PARTIAL)
    partial = _beside(target, _PARTIAL)
    try:
        yield partial
        _flush(partial)
        os.replace(partial, target)
        _flush(target.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Provide a new directory that is renamed to `target` when the block ends, or deleted if the block raises.

    Missing parent directories are created. Raises InputError if the target exists and `replace` is False.
    """
    if target.exists() and not replace:
        raise InputError(f"{target}: already exists; choose another directory, or replace it with --force")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target, _PARTIAL)
    partial = _beside(target, _PARTIAL)
    partial.mkdir()
    try:
        yield partial
        move_into_place(partial, target, replace=replace)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def move_into_place(directory: Path, target: Path, *, replace: bool = False) -> None:
    """Flush a directory to disk and rename it to `target`, on the same file system.

    An existing target is deleted only after the new directory is in place. Raises InputError if the target exists and
    `replace` is False.
    """
    for path in [*directory.rglob("*"), directory]:
        _flush(path)
    if not replace:
        _rename_to_new(directory, target)
    elif not target.exists():
        os.rename(directory, target)
    else:
        retired = _beside(target, _RETIRED)
        os.rename(target, retired)
        try:
            os.rename(directory, target)
        except BaseException:
            os.rename(retired, target)
            raise
        shutil.rmtree(retired)
    _flush(target.parent)
    _remove_abandoned(target, _RETIRED)


def left_by_crash(target: Path) -> Path | None:
    """Return the previous version of a directory if a crash left it without its name, otherwise None."""
    return None if target.exists() else next((path for path, _ in _siblings(target, _RETIRED)), None)


@contextmanager
def storage_errors(target: Path) -> Iterator[None]:
    """Raise StorageError, naming the target, if the block fails because the disk is full or not writable."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageError(
                f"{target}: the disk is full and nothing was written; free some space and try again"
            ) from error
        if error.errno in _NOT_WRITABLE:
            raise StorageError(f"{target}: not writable ({error.strerror})") from error
        raise


def _beside(target: Path, kind: str) -> Path:
    """Return a new hidden name in the directory of the target."""
    return target.with_name(f".{target.stem}{kind}{os.getpid()}-{secrets.token_hex(4)}{target.suffix}")


def _siblings(target: Path, kind: str) -> Iterator[tuple[Path, int]]:
    """Yield the paths that were named by `_beside`, each with the id of the process that named it."""
    pattern = re.compile(re.escape(f".{target.stem}{kind}") + r"(\d+)-\w+" + re.escape(target.suffix))
    for path in target.parent.iterdir():
        if match := pattern.fullmatch(path.name):
            yield path, int(match[1])


def _remove_abandoned(target: Path, kind: str) -> None:
    """Delete what processes that were killed have left beside the target."""
    for path, process in _siblings(target, kind):
        if not _is_running(process):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # the process belongs to another user, or its state is unknown
        return True
    return True


def _flush(path: Path) -> None:
    """Flush the contents of a file, or the list of files in a directory, to disk.

    On a Mac, fsync leaves them in the cache of the disk, and not every file system supports the call that does not.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if (command := getattr(fcntl, "F_FULLFSYNC", None)) is not None:
            with suppress(OSError):
                fcntl.fcntl(descriptor, command)
    finally:
        os.close(descriptor)


def _rename_to_new(directory: Path, target: Path) -> None:
    """Rename a directory. Raises InputError if another process has created the target in the meantime."""
    try:
        os.rename(directory, target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise InputError(
                f"{target}: was created by another process in the meantime; it was not replaced"
            ) from error
        raise
