"""The shared library of our CPU kernels: find it, declare its functions, and turn its errors into exceptions.

`kernels/include/pplx_kernels.h` documents the functions.
"""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

from pplx_edge.errors import ArtifactError, EdgeError, InputError, ModelError

LIBRARY_VARIABLE = "PPLX_EDGE_KERNELS"  # the path of another build of the library
ISA_VARIABLE = "PPLX_EDGE_ISA"  # the name of an instruction set to use instead of the best one
_ABI_VERSION = 2
_SCALAR = "scalar"  # the instruction set without vectors, which every processor has
_LIBRARY = (
    Path(__file__).parents[1] / "kernels" / ("libpplx_kernels" + (".dylib" if sys.platform == "darwin" else ".so"))
)
_ERROR_BYTES = 512
_EXCEPTIONS: dict[int, type[EdgeError]] = {
    1: InputError,
    2: ArtifactError,
    3: ArtifactError,
    4: InputError,
    5: EdgeError,
}

_pointer, _text, _i32, _i64, _u64 = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64
_rows, _error = (_pointer, _pointer, _i64), (_text, _u64)  # ids, starts and the number of rows; a buffer for the error
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "pplx_abi_version": (_i32, ()),
    "pplx_instruction_sets": (_text, ()),
    "pplx_build_info": (_text, ()),
    "pplx_open": (_i32, (_text, _pointer, _u64, _text, ctypes.POINTER(_pointer), *_error)),
    "pplx_states": (_i32, (_pointer, *_rows, _i32, _pointer, *_error)),
    "pplx_span_means": (_i32, (_pointer, *_rows, _pointer, _i64, _i32, _pointer, *_error)),
    "pplx_run_layers": (_i32, (_pointer, *_rows, _i32, _i32, _i32, _pointer, *_error)),
    "pplx_isa": (_text, (_pointer,)),
    "pplx_buffer_bytes": (_u64, (_pointer, _i64, _i64, _i32)),
    "pplx_phase_names": (_text, ()),
    "pplx_phase_seconds": (None, (_pointer, _pointer)),
    "pplx_default_threads": (_i32, ()),
    "pplx_close": (None, (_pointer,)),
}


class NativeLibrary:
    """The functions of the library. A function that fails raises the exception of its result, with its error text."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.functions = ctypes.CDLL(str(path))
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(self.functions, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise ModelError(f"{path}: the CPU kernels cannot be loaded ({error})") from error
        if (found := self.functions.pplx_abi_version()) != _ABI_VERSION:
            raise ModelError(f"{path}: the CPU kernels have interface {found}, but this release needs {_ABI_VERSION}")

    @property
    def instruction_sets(self) -> list[str]:
        """The instruction sets that this processor can run, best first."""
        return self.functions.pplx_instruction_sets().decode().split(",")

    @property
    def build_info(self) -> str:
        """The compiler of the library and the instruction sets that it contains."""
        return self.functions.pplx_build_info().decode()

    def call(self, name: str, *arguments: Any, subject: str = "") -> None:
        """Call a function that returns a result. `subject` begins the message of its error."""
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        result = getattr(self.functions, name)(*arguments, error, _ERROR_BYTES)
        if result:
            message = error.value.decode(errors="replace")
            raise _EXCEPTIONS.get(result, EdgeError)(f"{subject}: {message}" if subject else message)


def load_library() -> NativeLibrary:
    """Return the library. Raises ModelError if this installation has none or it cannot be loaded."""
    return _loaded(Path(os.environ.get(LIBRARY_VARIABLE) or _LIBRARY))


@cache
def _loaded(path: Path) -> NativeLibrary:
    if not path.is_file():
        raise ModelError(
            f"this installation has no CPU kernels ({path.name} is missing): it was built without a compiler"
        )
    return NativeLibrary(path)


def require_fast_kernels() -> None:
    """Raise ModelError if there are no kernels, or none for the instruction sets of this processor."""
    if load_library().instruction_sets == [_SCALAR]:
        raise ModelError("the CPU kernels have no fast path for this processor; they need AVX2 or Arm's dot product")


def describe_kernels() -> str:
    """Return a sentence on the instruction set that the kernels use and on how they were built."""
    library = load_library()
    return f"uses {requested_isa() or library.instruction_sets[0]}, built with {library.build_info}"


def requested_isa() -> str:
    """Return the instruction set that the environment requests, or "" for the best one."""
    return os.environ.get(ISA_VARIABLE, "")
