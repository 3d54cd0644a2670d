"""The machine and the software of a run, and the memory of a process."""

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from pplx_kit.host import describe_host, n_cores, peak_rss, proc_bytes, read_lines, versions

# fmt: off
_DISTRIBUTIONS = (
    "pplx-edge", "numpy", "onnx", "onnxruntime", "torch", "transformers", "sentence-transformers", "openvino", "nncf",
    "llama-cpp-python", "gguf", "mlx", "coremltools",
)
_FLAGS = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)
# fmt: on


def run() -> dict[str, Any]:
    """Return the time, commit, machine and versions of a run: the fields that the results of all benchmarks share."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "machine": describe(),
        "versions": software(),
    }


def describe() -> dict[str, Any]:
    """Return the processor, cores, memory and operating system."""
    return {
        "cpu": _cpu_name(),
        "flags": [flag for flag in _FLAGS if flag in _cpu_flags()],
        "cores": n_cores(),
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "system": f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
    }


def software() -> dict[str, str]:
    """Return the versions of all installed libraries that benchmarks measure."""
    return versions(*_DISTRIBUTIONS)


def commit() -> str:
    """Return the commit of this code, with `+changes` if tracked files differ, or `unknown` outside a clone."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if changed else head


def memory_bytes() -> int:
    """Return the memory of the machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def rss() -> int:
    """Return the resident set of this process in bytes; except on Linux, its peak so far."""
    return proc_bytes("/proc/self/status", "VmRSS") or peak_rss()


def reset_peak_rss() -> bool:
    """Reset the peak memory of this process, and return whether the system can (only Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def _cpu_name() -> str:
    fields = _cpuinfo()
    family = f" (family {fields['cpu family']}, model {fields.get('model', '?')})" if "cpu family" in fields else ""
    return describe_host().chip + family


def _cpu_flags() -> set[str]:
    fields = _cpuinfo()
    return set((fields.get("flags") or fields.get("Features") or "").split())


def _cpuinfo() -> dict[str, str]:
    """Return the fields of the first processor."""
    fields: dict[str, str] = {}
    for line in read_lines("/proc/cpuinfo"):
        if not line.strip():
            break
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    return fields
