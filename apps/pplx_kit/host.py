"""The machine that this process runs on, as far as the standard library and the system's own tools say."""

import contextlib
import os
import platform
import resource
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pplx_edge.system import macos_version

_KIBIBYTE = 1024
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Chip, system and memory. `n_cores` are those that this process may use, `available_bytes` None where unknown."""

    chip: str
    n_cores: int
    system: str
    memory_bytes: int
    available_bytes: int | None


def describe_host() -> Host:
    """What this machine is."""
    on_mac = sys.platform == "darwin"
    return Host(
        chip=(_sysctl("machdep.cpu.brand_string") if on_mac else _linux_chip()) or platform.processor() or _UNKNOWN,
        n_cores=n_cores(),
        system=_mac_system() if on_mac else f"{platform.system()} {platform.release()} {platform.machine()}",
        memory_bytes=int(_sysctl("hw.memsize") or 0) if on_mac else proc_bytes("/proc/meminfo", "MemTotal") or 0,
        available_bytes=proc_bytes("/proc/meminfo", "MemAvailable"),
    )


def versions(*distributions: str) -> dict[str, str]:
    """Version of each distribution that is installed."""
    found = {}
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def peak_rss() -> int:
    """Largest resident set of this process so far, in bytes.

    ru_maxrss counts bytes on a Mac and KiB elsewhere; on Linux it begins with the size of the process that started
    this one, which VmHWM does not.
    """
    if (found := proc_bytes("/proc/self/status", "VmHWM")) is not None:
        return found
    unit = 1 if sys.platform == "darwin" else _KIBIBYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def rss() -> int | None:
    """Resident set of this process now, in bytes; None where the system does not tell cheaply."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return pages * resource.getpagesize()


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _mac_system() -> str:
    translated = _sysctl("sysctl.proc_translated") == "1"
    hint = " (translated by Rosetta: a Python for arm64 is needed for MLX)" if translated else ""
    release, build = macos_version()
    return f"macOS {release} {f'({build}) ' if build else ''}{platform.machine()}{hint}"


def _linux_chip() -> str:
    """The model name of the first processor, empty where the system does not tell."""
    names = [line.partition(":")[2].strip() for line in read_lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else ""


def _sysctl(name: str) -> str:
    """A value of a Mac's kernel, empty where it cannot be had."""
    try:
        return subprocess.run(["sysctl", "-n", name], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def proc_bytes(path: str, name: str) -> int | None:
    """A field of a /proc file that counts KiB; None where there is no such file or field."""
    found = [line.split()[1] for line in read_lines(path) if line.startswith(f"{name}:")]
    return int(found[0]) * _KIBIBYTE if found else None


def read_lines(path: str) -> list[str]:
    """Return the lines of a file of the system, none if there is no such file."""
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
