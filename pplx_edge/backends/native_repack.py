"""Rearrange the weights of an int8 ONNX artifact of ours in memory, as the model file of the CPU kernels.

The integers and scales are the same in both formats, so nothing is rounded again.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pplx_edge import layout
from pplx_edge.errors import ArtifactError
from pplx_edge.spec import ModelSpec
from pplx_edge.weights.native_file import model_image

_TABLE = "embed_tokens.weight"
_BLOCK_ROWS = 8192


def repacked_image(directory: Path, spec: ModelSpec) -> mmap.mmap:
    """Return the model file for the artifact in a directory, in anonymous memory.

    Raises ArtifactError if its graph does not contain the weights of the model.
    """
    try:
        return model_image(spec, _GraphWeights(directory, spec))
    except ArtifactError:
        raise
    except Exception as error:  # the onnx package has no common base class, and protobuf raises its own
        raise ArtifactError(f"{directory}: its weights cannot be read ({error}); convert the model again") from error


class _GraphWeights:
    """The weights of a graph by the names that they have in a checkpoint."""

    def __init__(self, directory: Path, spec: ModelSpec):
        import onnx

        self.directory, self.spec = directory, spec
        graph = onnx.load_model(str(directory / layout.ONNX_GRAPH), load_external_data=False).graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}

    def table_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield blocks of rows of the embedding table, int8 `[R, D]`, with their float32 scales `[R]`."""
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        codes, scales = self._read(_TABLE, np.int8, shape), self._read(f"{_TABLE}_scale", np.float32, shape[:1])
        for start in range(0, len(codes), _BLOCK_ROWS):
            yield codes[start : start + _BLOCK_ROWS], scales[start : start + _BLOCK_ROWS]

    def vector(self, name: str) -> np.ndarray:
        """Return the weight of a norm, float32."""
        return self._read(name, np.float32, self.spec.tensor_shapes()[name])

    def projection(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of a projection, int8 `[N, K]`, and its scales, float32 `[N]`."""
        n_out, n_in = self.spec.tensor_shapes()[name]
        codes = self._read(name, np.int8, (n_in, n_out)).T
        scales = self._read(f"{name}_scale", np.float32, (n_out,))
        if name.endswith("q_proj.weight"):
            return self._natural(codes), self._natural(scales)
        return (self._natural(codes.T).T if name.endswith("o_proj.weight") else codes), scales

    def rotary(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the rotary cosines and sines, float32 `[max_tokens, head_dim / 2]` each."""
        shape = (self.spec.max_tokens, self.spec.head_dim // 2)
        return self._read("rotary.cos", np.float32, shape), self._read("rotary.sin", np.float32, shape)

    def _natural(self, values: np.ndarray) -> np.ndarray:
        """Reorder query heads along the first axis from (group, key head) to (key head, group)."""
        spec = self.spec
        return (
            values.reshape(spec.heads_per_kv, spec.n_kv_heads, spec.head_dim, -1).swapaxes(0, 1).reshape(values.shape)
        )

    def _read(self, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
        from onnx import numpy_helper

        if name not in self.tensors:
            raise ArtifactError(
                f"{self.directory}: {layout.ONNX_GRAPH} has no weights {name!r}; convert the model again"
            )
        values = numpy_helper.to_array(self.tensors[name], base_dir=str(self.directory))
        if (values.dtype, values.shape) != (dtype, shape):
            raise ArtifactError(
                f"{self.directory}: {name} is {values.dtype} {list(values.shape)}, config.json implies {list(shape)}"
            )
        return values
