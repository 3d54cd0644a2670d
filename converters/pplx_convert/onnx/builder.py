"""Small tools to author an ONNX graph node by node: names, nodes, constants, and weights kept in a file beside it.

Weights are appended to the data file one at a time, so a graph of any size is written within the memory of its largest
tensor. They start on page boundaries, which lets the runtime map them instead of reading them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
OPSET = 21
IR_VERSION = 10
UNUSED = "\0"  # an output that is not wanted
_PAGE_BYTES = 1 << 16  # a multiple of every page size in use (4, 16 and 64 KiB)
_INLINE_BYTES = 1 << 16  # smaller tensors live in the graph file itself

_ONNX_TYPES = {
    np.dtype(np.bool_): TensorProto.BOOL,
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int64): TensorProto.INT64,
}


class WeightFile:
    """The data file of a graph, appended to while the graph is authored."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("wb")

    def begin(self) -> int:
        """Pads to the next page and returns that offset."""
        self._file.write(b"\0" * (-self._file.tell() % _PAGE_BYTES))
        return self._file.tell()

    def write(self, values: np.ndarray) -> int:
        """Appends an array's bytes and returns how many."""
        return self._file.write(np.ascontiguousarray(values).data)

    def close(self) -> None:
        """Flushes and closes the file."""
        self._file.close()


class GraphBuilder:
    """Collects the nodes and weights of one graph. Values are known by their names, as in ONNX itself."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._n_names = 0
        self._shared: dict[str, str] = {}

    def node(self, op: str, *inputs: str, domain: str = "", outputs: Sequence[str] = ("",), **attributes: Any) -> str:
        """Adds a node and returns the name of its first output; outputs without a name get one."""
        names = ["" if name == UNUSED else name or self.fresh(op) for name in outputs]
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, name=self.fresh(op), **attributes))
        return names[0]

    def fused(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds one of ONNX Runtime's own operators."""
        return self.node(op, *inputs, domain=MICROSOFT, **attributes)

    def fresh(self, stem: str) -> str:
        """A name that is not in use."""
        self._n_names += 1
        return f"{stem}_{self._n_names}"

    def constant(self, values: Any, dtype: type = np.int64) -> str:
        """A small constant; equal ones are shared."""
        array = np.asarray(values, dtype)
        name = f"const_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, values: np.ndarray, file: WeightFile) -> str:
        """A weight, in the data file unless it is small."""
        if values.nbytes <= _INLINE_BYTES:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
            return name
        offset = file.begin()
        return self.stored_weight(name, values.dtype, values.shape, file, offset, file.write(values))

    def stored_weight(
        self, name: str, dtype: np.dtype, shape: Sequence[int], file: WeightFile, offset: int, length: int
    ) -> str:
        """A weight whose bytes are in the data file already."""
        tensor = TensorProto(name=name, data_type=_ONNX_TYPES[np.dtype(dtype)], dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", file.path.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers[name] = tensor
        return name

    def once(self, key: str, author: Callable[[], str]) -> str:
        """The value that `author` makes the first time this key is asked for, shared afterwards."""
        if key not in self._shared:
            self._shared[key] = author()
        return self._shared[key]

    def with_weights(self, prefixes: tuple[str, ...]) -> "GraphBuilder":
        """An empty graph over those of this graph's weights whose names begin with a prefix."""
        other = GraphBuilder()
        other.initializers = {name: t for name, t in self.initializers.items() if name.startswith(prefixes)}
        return other

    def branch(
        self, build: Callable[["GraphBuilder"], Sequence[str]], inputs: Sequence[onnx.ValueInfoProto] = ()
    ) -> onnx.GraphProto:
        """A subgraph for If or Loop, authored by `build`; it may use any name of this graph."""
        inner = GraphBuilder()
        inner._n_names = self._n_names + 1_000_000  # names inside never meet names outside
        outputs = build(inner)
        self._n_names += len(inner.nodes) + 1
        infos = [onnx.ValueInfoProto(name=name) for name in outputs]
        return helper.make_graph(
            inner.nodes, self.fresh("body"), list(inputs), infos, list(inner.initializers.values())
        )

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], name: str
    ) -> onnx.ModelProto:
        """The finished model."""
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), list(self.initializers.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pplx-edge")
