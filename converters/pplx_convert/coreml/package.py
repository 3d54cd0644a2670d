"""A Core ML package on disk: functions authored with the MIL builder, over one weight file written tensor by tensor.

The usual way, `ct.convert` for each function and `save_multifunction` for all, holds every function's weights in memory
at once, seven times the model. Here a tensor goes to the weight file when it is converted and is let go; functions hold
stand-ins without memory that say where it is. So functions share weights by construction, converting needs the memory
of one tensor, and the same checkpoint gives the same bytes: `ct.convert` puts random ids into the package.

No pass is run over a program: it is authored in the types and operators that it shall have.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplx_convert.coreml.mil import (
    TARGET,
    BlobWriter,
    Function,
    Program,
    ProgramExporter,
    Var,
    file_value,
    is_symbolic,
    mb,
    proto,
    proto_type,
    types,
)
from pplx_edge.backends.coreml_io import FLEXIBLE_FUNCTION

AUTHOR = "com.apple.CoreML"  # the folder in which Core ML looks for a package's files
MODEL_FILE, WEIGHT_FOLDER, WEIGHT_FILE = "model.mlmodel", "weights", "weight.bin"
ONLY_FUNCTION = FLEXIBLE_FUNCTION  # what Core ML calls the function of a model that has no others
_WEIGHT_ADDRESS = f"@model_path/{WEIGHT_FOLDER}/{WEIGHT_FILE}"
_USUAL_LENGTH = 128  # what a flexible input is prepared for before another length is seen
_ID_SPACE = uuid.UUID("6f1a7d7e-6d3c-5a43-9a37-0f5b7f8f4c11")  # any constant: ids need only differ from each other


@dataclass(frozen=True, slots=True)
class _Kind:
    """How values of one MIL type are written: the blob writer's method, and the NumPy type that the builder wants."""

    write: str
    placeholder: np.dtype


_KINDS = {
    types.fp16: _Kind("write_fp16_data", np.dtype(np.float16)),
    types.int8: _Kind("write_int8_data", np.dtype(np.int8)),
    types.uint8: _Kind("write_uint8_data", np.dtype(np.uint8)),
    types.uint6: _Kind("write_uint6_data", types.np_uint6_dtype),
    types.uint4: _Kind("write_uint4_data", types.np_uint4_dtype),
}


@dataclass(frozen=True, slots=True)
class _Stored:
    value: Any  # proto.MIL_pb2.Value: file, offset, shape and type
    placeholder: np.ndarray


class PackageWeights:
    """The weight file of a package: `add` appends a tensor, `const` refers to it from the function being authored."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self._writer = BlobWriter(str(folder / WEIGHT_FILE))
        self._stored: dict[str, _Stored] = {}

    def add(self, name: str, values: np.ndarray, type: Any = types.fp16) -> None:
        """Appends a tensor. `values` are of the type's own dtype; codes of fewer than 8 bits are uint8."""
        kind = _KINDS[type]
        flat = np.ascontiguousarray(values).reshape(-1)
        if type is types.fp16:
            flat = flat.view(np.uint16)  # the writer takes the bits
        offset = getattr(self._writer, kind.write)(flat)
        self._stored[name] = _Stored(
            file_value(_WEIGHT_ADDRESS, offset, values.shape, proto_type(type)),
            np.broadcast_to(np.zeros((), kind.placeholder), values.shape),
        )

    def const(self, name: str, as_name: str = "") -> Var:
        """A stored tensor as a constant of the function that is being authored."""
        var = mb.const(val=self._stored[name].placeholder, name=as_name or name.replace(".", "_"))
        var.op.weight_id = name
        return var

    def zeros(self, size: int, as_name: str) -> Var:
        """A float16 vector of zeros as a constant, stored once for each size."""
        if (name := f"zeros.{size}") not in self._stored:
            self.add(name, np.zeros(size, np.float16))
        return self.const(name, as_name)

    def value(self, name: str | None) -> Any | None:
        """Where a stored tensor is, None for a name that is not stored."""
        stored = self._stored.get(name or "")
        return stored.value if stored else None

    def close(self) -> None:
        """Completes the file; the writer has no other way of being closed."""
        del self._writer


class _Exporter(ProgramExporter):
    """Turns programs into their protobuf, with the stored tensors in the place of the stand-ins."""

    def __init__(self, program: Program, weights: PackageWeights):
        super().__init__(program, "", TARGET)
        self._weights = weights

    def get_milproto_value(self, var: Var) -> Any:
        return self._weights.value(var.op.weight_id) or super().get_milproto_value(var)

    def create_file_value(self, var: Var) -> Any:
        raise AssertionError(f"{var.name}: a constant of this size goes through PackageWeights")


def write_package(
    package: Path,
    functions: Mapping[str, Function],
    weights: PackageWeights,
    *,
    default: str,
    longest: int | None = None,
) -> None:
    """Writes model and manifest of a package whose weight file is complete.

    `default` is the function that is run when none is asked for. Dimensions of inputs that have no fixed size go from 1
    to `longest`. A function called ONLY_FUNCTION is alone in its package and is described as the model itself.
    """
    program = Program()
    for name, function in functions.items():
        program.add_function(name, function)
    program.default_function_name = default
    exported = _Exporter(program, weights).export()
    described = [_function_description(name, function, longest) for name, function in functions.items()]
    if default == ONLY_FUNCTION:
        (only,) = described
        description = proto.Model_pb2.ModelDescription(input=only.input, output=only.output)
    else:
        description = proto.Model_pb2.ModelDescription(functions=described, defaultFunctionName=default)
    model = proto.Model_pb2.Model(description=description, specificationVersion=TARGET.value)
    model.mlProgram.CopyFrom(exported)
    (data_folder(package) / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))
    _write_manifest(package)


def data_folder(package: Path) -> Path:
    """The folder of a package that holds its model and its weights."""
    return package / "Data" / AUTHOR


def _function_description(name: str, function: Function, longest: int | None) -> Any:
    return proto.Model_pb2.FunctionDescription(
        name=name,
        input=[_input(key, var, longest) for key, var in function.inputs.items()],
        output=[_feature(var.name, var, _fixed_sizes(var)) for var in function.outputs],
    )


def _input(name: str, var: Var, longest: int | None) -> Any:
    sizes = _fixed_sizes(var)
    if longest is None or all(sizes):
        return _feature(name, var, sizes)
    usual = min(longest, _USUAL_LENGTH)
    feature = _feature(name, var, [size or usual for size in sizes])
    for size in sizes:
        feature.type.multiArrayType.shapeRange.sizeRanges.add(lowerBound=size or 1, upperBound=size or longest)
    return feature


def _feature(name: str, var: Var, sizes: list[int | None]) -> Any:
    """The description of an input or output; one whose sizes are not all fixed is described without a shape."""
    array = proto.FeatureTypes_pb2.ArrayFeatureType
    kinds = {types.fp16: array.ArrayDataType.FLOAT16, types.fp32: array.ArrayDataType.FLOAT32}
    feature = proto.Model_pb2.FeatureDescription(name=name)
    feature.type.multiArrayType.dataType = kinds[var.dtype]
    if all(sizes):
        feature.type.multiArrayType.shape.extend(size for size in sizes if size)
    return feature


def _fixed_sizes(var: Var) -> list[int | None]:
    """The sizes of a value's dimensions, None for those that are free."""
    return [None if is_symbolic(size) else int(size) for size in var.shape]


def _write_manifest(package: Path) -> None:
    """Manifest.json, with ids that follow from the names."""
    items = {"CoreML Model Specification": MODEL_FILE, "CoreML Model Weights": WEIGHT_FOLDER}
    ids = {name: str(uuid.uuid5(_ID_SPACE, name)).upper() for name in items.values()}
    manifest = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": {
            ids[name]: {"author": AUTHOR, "description": description, "name": name, "path": f"{AUTHOR}/{name}"}
            for description, name in items.items()
        },
        "rootModelIdentifier": ids[MODEL_FILE],
    }
    (package / "Manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
