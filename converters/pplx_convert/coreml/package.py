"""Write Core ML packages: functions built with the MIL builder, and one weight file written tensor by tensor.

The usual method, `ct.convert` for each function followed by `save_multifunction`, keeps the weights of all functions in
memory, seven times the size of the model. Here, each tensor is written to the weight file as soon as it is converted
and then freed, and functions contain placeholders that refer to the file. Functions therefore share weights, conversion
needs the memory of one tensor, and the same checkpoint always gives the same bytes, whereas `ct.convert` writes random
ids to the package.

No compiler passes are run: programs are built with their final types and operators.
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
    mb,
    proto,
    proto_type,
    types,
)

AUTHOR = "com.apple.CoreML"  # the folder in which Core ML expects the files of a package
MODEL_FILE, WEIGHT_FOLDER, WEIGHT_FILE = "model.mlmodel", "weights", "weight.bin"
_WEIGHT_ADDRESS = f"@model_path/{WEIGHT_FOLDER}/{WEIGHT_FILE}"
_ID_SPACE = uuid.UUID("6f1a7d7e-6d3c-5a43-9a37-0f5b7f8f4c11")  # any constant: ids need only differ from each other


@dataclass(frozen=True, slots=True)
class _Kind:
    """How values of one MIL type are written: the method of the blob writer, and the NumPy dtype of placeholders."""

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
    """The weight file of a package. `add` appends a tensor, and `const` refers to it in the function being built."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        self._writer = BlobWriter(str(folder / WEIGHT_FILE))
        self._stored: dict[str, _Stored] = {}

    def add(self, name: str, values: np.ndarray, type: Any = types.fp16) -> None:
        """Append a tensor. `values` have the dtype of `type`; codes of fewer than 8 bits are uint8."""
        kind = _KINDS[type]
        flat = np.ascontiguousarray(values).reshape(-1)
        if type is types.fp16:
            flat = flat.view(np.uint16)  # the writer expects raw bits
        offset = getattr(self._writer, kind.write)(flat)
        self._stored[name] = _Stored(
            file_value(_WEIGHT_ADDRESS, offset, values.shape, proto_type(type)),
            np.broadcast_to(np.zeros((), kind.placeholder), values.shape),
        )

    def const(self, name: str, as_name: str = "") -> Var:
        """Return a stored tensor as a constant of the function being built."""
        var = mb.const(val=self._stored[name].placeholder, name=as_name or name.replace(".", "_"))
        var.op.weight_id = name
        return var

    def zeros(self, size: int, as_name: str) -> Var:
        """Return a float16 vector of zeros as a constant, stored once per size."""
        if (name := f"zeros.{size}") not in self._stored:
            self.add(name, np.zeros(size, np.float16))
        return self.const(name, as_name)

    def value(self, name: str | None) -> Any | None:
        """Return the protobuf value that refers to a stored tensor, or None if the name is not stored."""
        stored = self._stored.get(name or "")
        return stored.value if stored else None

    def close(self) -> None:
        """Complete the file by deleting the writer, which has no close method."""
        del self._writer


class _Exporter(ProgramExporter):
    """Converts programs to protobuf, replacing placeholders by references to stored tensors."""

    def __init__(self, program: Program, weights: PackageWeights):
        super().__init__(program, "", TARGET)
        self._weights = weights

    def get_milproto_value(self, var: Var) -> Any:
        return self._weights.value(var.op.weight_id) or super().get_milproto_value(var)

    def create_file_value(self, var: Var) -> Any:
        raise AssertionError(f"{var.name}: a constant of this size must be stored in PackageWeights")


def write_package(
    package: Path,
    functions: Mapping[str, Function],
    weights: PackageWeights,
    *,
    default: str,
) -> None:
    """Write the model and the manifest of a package whose weight file is complete.

    `default` is the name of the default function.
    """
    program = Program()
    for name, function in functions.items():
        program.add_function(name, function)
    program.default_function_name = default
    exported = _Exporter(program, weights).export()
    described = [_function_description(name, function) for name, function in functions.items()]
    description = proto.Model_pb2.ModelDescription(functions=described, defaultFunctionName=default)
    model = proto.Model_pb2.Model(description=description, specificationVersion=TARGET.value)
    model.mlProgram.CopyFrom(exported)
    (data_folder(package) / MODEL_FILE).write_bytes(model.SerializeToString(deterministic=True))
    _write_manifest(package)


def data_folder(package: Path) -> Path:
    """Return the folder of a package that contains its model and its weights."""
    return package / "Data" / AUTHOR


def _function_description(name: str, function: Function) -> Any:
    return proto.Model_pb2.FunctionDescription(
        name=name,
        input=[_feature(key, var) for key, var in function.inputs.items()],
        output=[_feature(var.name, var) for var in function.outputs],
    )


def _feature(name: str, var: Var) -> Any:
    """Return the description of an input or output."""
    array = proto.FeatureTypes_pb2.ArrayFeatureType
    kinds = {types.fp16: array.ArrayDataType.FLOAT16, types.fp32: array.ArrayDataType.FLOAT32}
    feature = proto.Model_pb2.FeatureDescription(name=name)
    feature.type.multiArrayType.dataType = kinds[var.dtype]
    feature.type.multiArrayType.shape.extend(int(size) for size in var.shape)
    return feature


def _write_manifest(package: Path) -> None:
    """Write Manifest.json, with ids derived from the names."""
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
