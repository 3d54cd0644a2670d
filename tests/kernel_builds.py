"""Builds of the CPU kernels and their test program, for this machine, for other processors, and with sanitizers."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import pplx_edge

KERNELS = Path(pplx_edge.__file__).parent / "kernels"
_OPTIONS = {
    "native": (),
    "emulated": ("-DPPLX_EMULATE=ON",),
    "sanitized": ("-DPPLX_SANITIZE=ON",),
    "aarch64": (
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    ),
}


@dataclass(frozen=True, slots=True)
class KernelBuild:
    """A build in a directory, and the command that runs its programs."""

    directory: Path
    emulator: tuple[str, ...] = ()

    @property
    def library(self) -> Path:
        return next(self.directory.glob("libpplx_kernels.*"))

    def program(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the test program."""
        command = [*self.emulator, str(self.directory / "kernel_tests"), *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        if check and result.returncode:
            raise AssertionError(
                f"{command[-len(arguments) - 1 :]}: {result.returncode}\n{result.stdout}{result.stderr}"
            )
        return result

    def instruction_sets(self) -> list[str]:
        return self.program("isas").stdout.strip().split(",")

    def states(self, model: Path, rows: Path, isa: str, threads: int = 1) -> np.ndarray:
        """Return the states that the test program computes, as their bits."""
        out = self.directory / f"states-{os.getpid()}.bin"
        self.program("states", model, rows, out, isa, threads)
        states = np.fromfile(out, np.uint32)
        out.unlink()
        return states


def build_kernels(variant: str, directory: Path, emulator: Sequence[str] = ()) -> KernelBuild:
    """Compile a variant of the kernels, incrementally. Skips the test if this machine lacks a tool."""
    compiler = "aarch64-linux-gnu-g++" if variant == "aarch64" else os.environ.get("CXX", "c++")
    for tool in ("cmake", "ninja", compiler, *emulator[:1]):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} here")
    if variant == "emulated" and not Path("/usr/include/simde").is_dir():
        pytest.skip("there is no SIMDe here (Debian: libsimde-dev)")
    directory.mkdir(parents=True, exist_ok=True)
    configure = ["cmake", "-S", KERNELS, "-B", directory, "-G", "Ninja", "-DPPLX_TESTS=ON", *_OPTIONS[variant]]
    for command in (configure, ["ninja", "-C", directory, "-j", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stdout + done.stderr
        assert "warning" not in done.stdout, done.stdout
    return KernelBuild(directory, tuple(emulator))


def write_rows(path: Path, rows: Sequence[np.ndarray]) -> Path:
    """Write rows of ids for the test program."""
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    np.concatenate([[len(rows)], starts, *rows]).astype(np.int64).tofile(path)
    return path
