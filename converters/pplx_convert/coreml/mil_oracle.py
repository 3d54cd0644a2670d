"""Evaluate saved Core ML packages in NumPy, on any machine, with the weights from the files.

Core ML itself runs only on Macs. This module reads the protobuf and the weight file of a package, decodes compressed
weights, and runs any function operator by operator. With `half`, every value that the program declares as float16 is
rounded after its operator; sums within an operator are float32, like the accumulators of the devices according to their
documentation. The evaluation does not show where Core ML places an operator or how fast it runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pplx_convert.coreml.mil import proto
from pplx_convert.coreml.mil_ops import HANDLERS, VARIADIC
from pplx_convert.coreml.mil_values import decoded, type_name
from pplx_convert.coreml.package import MODEL_FILE, WEIGHT_FILE, WEIGHT_FOLDER, data_folder
from pplx_edge.errors import ArtifactError, InputError, UnsupportedModel

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class _Operation:
    """An operator: `arguments` are lists of names or protobuf values; `outputs` are pairs of name and type."""

    type: str
    arguments: Mapping[str, list[Any]]
    outputs: list[tuple[str, str]]

    @property
    def names(self) -> list[str]:
        """The names of the values that the operator reads."""
        return [item for items in self.arguments.values() for item in items if isinstance(item, str)]


class MilProgram:
    """The functions of a saved package, for evaluation in NumPy."""

    def __init__(self, program: Any, weight_file: Path):
        self._program, self._weight_file = program, weight_file

    @classmethod
    def open(cls, package: Path) -> "MilProgram":
        """Open the program in a package. Raises ArtifactError if it is missing or not readable."""
        path = data_folder(package) / MODEL_FILE
        model = proto.Model_pb2.Model()
        try:
            model.ParseFromString(path.read_bytes())
        except Exception as error:  # protobuf's DecodeError is not public
            raise ArtifactError(f"{path}: not a readable Core ML model ({error})") from error
        return cls(model.mlProgram, data_folder(package) / WEIGHT_FOLDER / WEIGHT_FILE)

    @property
    def functions(self) -> list[str]:
        """The names of the functions, sorted."""
        return sorted(self._program.functions)

    def run(self, function: str, inputs: Arrays, *, half: bool = False, also: Sequence[str] = ()) -> dict[str, Any]:
        """Return the outputs of a function and the intermediate values named in `also`, as float32 arrays by name."""
        wanted = [*self._block(function).outputs, *also]
        return {name: values[0] for name, values in self.values(function, [inputs], wanted, half=half)}

    def values(
        self, function: str, rows: Sequence[Arrays], names: Sequence[str], *, half: bool = False
    ) -> Iterator[tuple[str, list[np.ndarray]]]:
        """Yield each named value of a function for several inputs, as soon as it is computed.

        All inputs are evaluated together, so each weight is decoded only once. Values are freed after their last use,
        so memory contains only the weights of one operator and the activations of all rows.

        Raises InputError for an unknown function or value, and UnsupportedModel for an operator without a handler.
        """
        operations = self._operations(function)
        known = {name for operation in operations for name, _ in operation.outputs}
        if unknown := set(names) - known:
            raise InputError(f"{function}: no value named {sorted(unknown)[0]!r}")
        last_use = {name: i for i, operation in enumerate(operations) for name in operation.names}
        shared: dict[str, Any] = {}
        of_rows = [{name: _as_float32(value) for name, value in inputs.items()} for inputs in rows]
        for i, operation in enumerate(operations):
            varies = any(name in of_rows[0] for name in operation.names)
            for scope in of_rows if varies else [shared]:
                scope |= self._evaluated(operation, {**shared, **scope} if varies else shared, half)
            for name, _ in operation.outputs:
                if name in names:
                    yield name, [(scope if varies else shared)[name] for scope in of_rows]
            for name in [*operation.names, *(name for name, _ in operation.outputs)]:
                if last_use.get(name, i) <= i:
                    for scope in (shared, *of_rows):
                        scope.pop(name, None)

    def _block(self, function: str) -> Any:
        if function not in self._program.functions:
            raise InputError(f"no function named {function!r}; choose one of {', '.join(self.functions)}")
        described = self._program.functions[function]
        return described.block_specializations[described.opset]

    def _operations(self, function: str) -> list[_Operation]:
        return [
            _Operation(
                type=operation.type,
                arguments={name: _bindings(argument) for name, argument in operation.inputs.items()}
                | ({"val": [operation.attributes["val"]]} if operation.type == "const" else {}),
                outputs=[(output.name, type_name(output.type)) for output in operation.outputs],
            )
            for operation in self._block(function).operations
        ]

    def _evaluated(self, operation: _Operation, scope: Mapping[str, Any], half: bool) -> dict[str, Any]:
        arguments = {
            name: [scope[item] if isinstance(item, str) else self._constant(item) for item in items]
            for name, items in operation.arguments.items()
        }
        if operation.type == "const":
            (value,) = arguments["val"]
            return {operation.outputs[0][0]: value}
        if operation.type not in HANDLERS:
            raise UnsupportedModel(f"{operation.outputs[0][0]}: no handler for the operator {operation.type!r}")
        variadic = VARIADIC.get(operation.type)
        unpacked = {name: items if name == variadic else items[0] for name, items in arguments.items()}
        with np.errstate(
            over="ignore", invalid="ignore", divide="ignore"
        ):  # float16 overflows to infinity, as in Core ML
            result = HANDLERS[operation.type](unpacked)
            results = result if isinstance(result, tuple) else (result,)
            return {
                name: _rounded(value) if half and type == "FLOAT16" else value
                for (name, type), value in zip(operation.outputs, results, strict=True)
            }

    def _constant(self, value: Any) -> Any:
        return _as_float32(decoded(value, self._weight_file))


def _bindings(argument: Any) -> list[Any]:
    return [item.name if item.WhichOneof("binding") == "name" else item.value for item in argument.arguments]


def _as_float32(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype == np.float16:
        return value.astype(np.float32)
    return value


def _rounded(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16).astype(np.float32)
