"""Run a command on this x86 processor as if it lacked VNNI, at full speed: `python -m pplx_bench.masked -- COMMAND`.

ONNX Runtime asks the CPUID instruction which kernels it may use. In a copy of its library every CPUID becomes a
breakpoint, and a preloaded handler answers with some features masked out, so the kernels of an older processor run
natively. For libraries that read environment variables instead (torch, oneDNN, MKL), these are set. NumPy keeps what it
finds. Needs Linux, gcc and objdump.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_CPUID, _BREAKPOINT = b"\x0f\xa2", b"\xcc\x90"  # the second is `int3; nop`, as long as the first
# Environment of other libraries, and the bits of CPUID leaf 7 that are masked out in EBX, ECX and EDX.
_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
_AVX512 = {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
_ENVIRONMENT = {"avx2": _AVX2, "avx512": _AVX512}
_HANDLER = r"""
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>

static void answer(int signal, siginfo_t *info, void *context) {
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  unsigned leaf = r[REG_RAX], sub = r[REG_RCX], a, b, c, d;
  __cpuid_count(leaf, sub, a, b, c, d);
  if (leaf == 7 && sub == 0) {
#ifndef KEEP_AVX512
    b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
    c &= ~(1u << 1 | 1u << 6 | 1u << 12 | 1u << 14);
    d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 23);
#endif
    c &= ~(1u << 11);                      /* AVX512-VNNI */
    d &= ~(1u << 22 | 1u << 24 | 1u << 25); /* AMX */
  }
  if (leaf == 7 && sub == 1) {
    a &= ~(1u << 4 | 1u << 5 | 1u << 21);  /* AVX-VNNI, AVX512-BF16, AMX-FP16 */
    d &= ~(1u << 4 | 1u << 5 | 1u << 10);  /* AVX-VNNI-INT8, AVX-NE-CONVERT, AVX-VNNI-INT16 */
  }
  r[REG_RAX] = a; r[REG_RBX] = b; r[REG_RCX] = c; r[REG_RDX] = d;
}

__attribute__((constructor)) static void install(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = answer;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGTRAP, &action, 0);
}
"""


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m pplx_bench.masked", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--as", dest="level", choices=_ENVIRONMENT, default="avx2", help="what is kept (default: avx2)")
    parser.add_argument("command", nargs="+", metavar="-- COMMAND")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pplx-masked-") as scratch:
        return subprocess.run(options.command, env=masked_environment(Path(scratch), options.level)).returncode


def masked_environment(scratch: Path, level: str) -> dict[str, str]:
    """Return the environment in which Python sees a processor of that level; files for it are written to `scratch`."""
    import onnxruntime

    package = Path(onnxruntime.__file__).parent
    shutil.copytree(package, scratch / package.name)
    (library,) = (scratch / package.name / "capi").glob("onnxruntime_pybind11_state*.so")
    _replace_cpuid(library)
    handler = scratch / "handler.so"
    flags = ["-DKEEP_AVX512"] if level == "avx512" else []
    compiler = ["gcc", "-O1", "-shared", "-fPIC", *flags, "-x", "c", "-", "-o", str(handler)]
    subprocess.run(compiler, input=_HANDLER, text=True, check=True)
    path = os.pathsep.join(filter(None, [str(scratch), os.environ.get("PYTHONPATH")]))
    return os.environ | _ENVIRONMENT[level] | {"LD_PRELOAD": str(handler), "PYTHONPATH": path}


def _replace_cpuid(library: Path) -> None:
    """Replace each CPUID instruction of a library by a breakpoint."""
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True
    )
    headers = subprocess.run(["objdump", "-h", library], capture_output=True, text=True, check=True)
    sections = [  # address, offset in the file, size
        (int(address, 16), int(offset, 16), int(size, 16))
        for size, address, offset in re.findall(r"^ *\d+ \S+ +(\w+)  (\w+)  \w+  (\w+)", headers.stdout, re.MULTILINE)
    ]
    content = bytearray(library.read_bytes())
    for found in re.findall(r"^ *([0-9a-f]+):\tcpuid", listing.stdout, re.MULTILINE):
        at = next(
            int(found, 16) - start + offset for start, offset, size in sections if 0 <= int(found, 16) - start < size
        )
        if content[at : at + 2] != _CPUID:
            raise RuntimeError(f"{library}: no CPUID at {at:#x}")
        content[at : at + 2] = _BREAKPOINT
    library.write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
