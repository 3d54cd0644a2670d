"""The parts of coremltools used to build and read programs.

Some of them are private and none has type annotations. Only this module imports them, so it is the first place to check
with a new release of coremltools.
"""

from typing import Any

from pplx_edge.backends.coreml_tools import ct, quiet

with quiet():
    from coremltools import proto as _proto
    from coremltools.converters.mil import mil
    from coremltools.converters.mil.backend.mil import helper
    from coremltools.converters.mil.backend.mil import load as backend
    from coremltools.converters.mil.mil import types as mil_types
    from coremltools.libmilstoragepython import _BlobStorageWriter  # type: ignore[attr-defined]

Var = Any  # a value of a program
Function = Any
Program = mil.Program
mb: Any = mil.Builder
types: Any = mil_types

proto: Any = _proto
ProgramExporter = backend.MILProtoExporter
file_value: Any = helper.create_file_value_tensor
proto_type: Any = helper.types_to_proto_primitive
BlobWriter: Any = _BlobStorageWriter

TARGET: Any = ct.target.iOS18  # macOS 15, the first with fused attention, multiple functions and grouped palettes


def restart_names() -> None:
    """Reset the builder's numbering of constants, so that every program gets the same names."""
    mb.name_count.clear()
