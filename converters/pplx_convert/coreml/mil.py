"""The parts of coremltools that programs are authored and read with. Some are private and none is typed: this is the
one place that names them, and where a new release of coremltools is to be looked at first.
"""

from typing import Any

from pplx_edge.backends.coreml_tools import ct, quiet

with quiet():
    from coremltools import proto as _proto
    from coremltools.converters.mil import mil
    from coremltools.converters.mil.backend.mil import helper
    from coremltools.converters.mil.backend.mil import load as backend
    from coremltools.converters.mil.mil import types as mil_types
    from coremltools.converters.mil.mil.types import symbolic
    from coremltools.libmilstoragepython import _BlobStorageWriter  # type: ignore[attr-defined]

Var = Any  # a value of a program
Function = Any
Program = mil.Program
mb: Any = mil.Builder
types: Any = mil_types
new_symbol: Any = mil.get_new_symbol
is_symbolic: Any = symbolic.is_symbolic

proto: Any = _proto
ProgramExporter = backend.MILProtoExporter
file_value: Any = helper.create_file_value_tensor
proto_type: Any = helper.types_to_proto_primitive
BlobWriter: Any = _BlobStorageWriter

TARGET: Any = ct.target.iOS18  # macOS 15: the first with fused attention, several functions and grouped palettes


def restart_names() -> None:
    """Lets the builder number its own constants from 0 again, so that a second program is named like the first."""
    mb.name_count.clear()
