"""Build an ONNX graph node by node, with names, nodes, constants, and weights in a separate data file.

Weights are appended to the data file one at a time, so writing a graph needs only the memory of its largest tensor.
They start on page boundaries, so the runtime can map them instead of reading them.
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
UNUSED = "\0"  # the name of an output that is not used
_PAGE_BYTES = 1 << 16  # a multiple of every page size in use (4, 16 and 64 KiB)
_INLINE_BYTES = 1 << 16  # tensors up to this size are stored in the graph file itself

_ONNX_TYPES = {
    np.dtype(np.bool_): TensorProto.BOOL,
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int64): TensorProto.INT64,
}


class WeightFile:
    """The data file of a graph; weights are appended while the graph is built."""

    def __init__(self, path: Path):
        self.path = path
        self._file = path.open("wb")

    def begin(self) -> int:
        """Pad the file to the next page boundary and return its offset."""
        self._file.write(b"\0" * (-self._file.tell() % _PAGE_BYTES))
        return self._file.tell()

    def write(self, values: np.ndarray) -> int:
        """Append the bytes of an array and return their number."""
        return self._file.write(np.ascontiguousarray(values).data)

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()


class GraphBuilder:
    """Collects the nodes and weights of one graph. Values are identified by name, as in ONNX itself."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._n_names = 0
        self._shared: dict[str, str] = {}

    def node(self, op: str, *inputs: str, domain: str = "", outputs: Sequence[str] = ("",), **attributes: Any) -> str:
        """Add a node and return the name of its first output. Outputs with an empty name get a new name."""
        names = ["" if name == UNUSED else name or self.fresh(op) for name in outputs]
        self.nodes.append(helper.make_node(op, list(inputs), names, domain=domain, name=self.fresh(op), **attributes))
        return names[0]

    def fused(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one of ONNX Runtime's own operators and return the name of its first output."""
        return self.node(op, *inputs, domain=MICROSOFT, **attributes)

    def fresh(self, stem: str) -> str:
        """Return a new name."""
        self._n_names += 1
        return f"{stem}_{self._n_names}"

    def constant(self, values: Any, dtype: type = np.int64) -> str:
        """Add a small constant and return its name. Equal constants are shared."""
        array = np.asarray(values, dtype)
        name = f"const_{array.dtype}_{'x'.join(map(str, array.shape))}_{array.tobytes().hex()}"
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, values: np.ndarray, file: WeightFile) -> str:
        """Add a weight, in the data file unless it is small, and return its name."""
        if values.nbytes <= _INLINE_BYTES:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(values), name)
            return name
        offset = file.begin()
        return self.stored_weight(name, values.dtype, values.shape, file, offset, file.write(values))

    def stored_weight(
        self, name: str, dtype: np.dtype, shape: Sequence[int], file: WeightFile, offset: int, length: int
    ) -> str:
        """Add a weight whose bytes are already in the data file, and return its name."""
        tensor = TensorProto(name=name, data_type=_ONNX_TYPES[np.dtype(dtype)], dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", file.path.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self.initializers[name] = tensor
        return name

    def once(self, key: str, author: Callable[[], str]) -> str:
        """Return the value of a key, calling `author` to create it the first time."""
        if key not in self._shared:
            self._shared[key] = author()
        return self._shared[key]

    def with_weights(self, prefixes: tuple[str, ...]) -> "GraphBuilder":
        """Return an empty graph with those weights of this graph whose names begin with one of the prefixes."""
        other = GraphBuilder()
        other.initializers = {name: t for name, t in self.initializers.items() if name.startswith(prefixes)}
        return other

    def branch(
        self, build: Callable[["GraphBuilder"], Sequence[str]], inputs: Sequence[onnx.ValueInfoProto] = ()
    ) -> onnx.GraphProto:
        """Return a subgraph for If or Loop, created by `build`. It can use all names of this graph."""
        inner = GraphBuilder()
        inner._n_names = self._n_names + 1_000_000  # avoid name collisions with the outer graph
        outputs = build(inner)
        self._n_names += len(inner.nodes) + 1
        infos = [onnx.ValueInfoProto(name=name) for name in outputs]
        return helper.make_graph(
            inner.nodes, self.fresh("body"), list(inputs), infos, list(inner.initializers.values())
        )

    def model(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto], name: str
    ) -> onnx.ModelProto:
        """Return the finished model."""
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), list(self.initializers.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pplx-edge")
