"""Detect the file system of a path, and whether it is on a network, where SQLite's write-ahead log is not safe."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_REMOTE = frozenset(
    [
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afpfs", "webdav", "davfs", "9p", "afs", "ncpfs"),
        *("ceph", "glusterfs", "lustre", "gpfs", "beegfs", "pvfs2", "orangefs"),
        *(
            "fuse.sshfs",
            "fuse.rclone",
            "fuse.s3fs",
            "fuse.gcsfuse",
            "fuse.glusterfs",
            "fuse.davfs2",
            "fuse.vmhgfs-fuse",
        ),
    ]
)
_MAC_MOUNT = re.compile(r"^.+? on (?P<place>/.*) \((?P<kind>[^,)]+)(?P<flags>[^)]*)\)$")
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A mounted file system: its mount point, its type as named by the system, and whether it is on a network."""

    place: str
    kind: str
    remote: bool


def file_system_of(path: Path) -> FileSystem | None:
    """Return the file system that contains a path, or None if the system does not report it."""
    return holder(path, _on_mac() if sys.platform == "darwin" else _on_linux())


def holder(path: Path, mounted: list[FileSystem]) -> FileSystem | None:
    """Return the innermost mounted file system that contains a path; the last one if several share a mount point."""
    resolved = path.resolve()
    above = [each for each in mounted if resolved.is_relative_to(each.place)]
    return max(reversed(above), key=lambda each: len(each.place), default=None)


def linux_mounts(mountinfo: str) -> list[FileSystem]:
    """Parse the text of /proc/self/mountinfo into file systems, in the same order."""
    found = []
    for line in mountinfo.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if dash and len(fields) > 4:
            place = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), fields[4])
            kind = after.split(" ")[0]
            found.append(FileSystem(place, kind, kind in _REMOTE))
    return found


def mac_mounts(said: str) -> list[FileSystem]:
    """Parse the output of `mount` on macOS, which marks file systems on this machine as local."""
    matches = [_MAC_MOUNT.match(line) for line in said.splitlines()]
    return [
        FileSystem(match["place"], match["kind"], "local" not in match["flags"].replace(",", " ").split())
        for match in matches
        if match
    ]


def _on_linux() -> list[FileSystem]:
    try:
        return linux_mounts(_MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return []


def _on_mac() -> list[FileSystem]:
    try:
        return mac_mounts(subprocess.run(["/sbin/mount"], check=True, capture_output=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError):
        return []
