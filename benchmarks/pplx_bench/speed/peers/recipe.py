"""The usual recipe: export of the stock model to ONNX and ONNX Runtime's dynamic int8 quantization of it.

The steps and settings are those of `export_dynamic_quantized_onnx_model(…, "avx512_vnni")` in sentence-transformers,
which calls optimum: TorchScript export with ids and mask as inputs, then signed int8 weights per channel, uint8
activations with one scale a tensor, all operators that the quantizer knows, products inside attention included. They
are written out here because optimum pins an older transformers, in which this model would run causally.
"""

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from pplx_bench.speed.peers import Encode
from pplx_bench.speed.peers.batches import batch_ways, masked_means

_GRAPH = "model.onnx"
_OPSET = 18


class RecipePeer:
    """The quantized graph in ONNX Runtime; mean pooling outside, as sentence-transformers does it."""

    def __init__(self, session: ort.InferenceSession):
        self._session = session

    def ways(self, rows: list[np.ndarray]) -> dict[str, Encode]:
        return batch_ways(self._encode, rows)

    def _encode(self, ids: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask}
        return masked_means(np.asarray(self._session.run(["last_hidden_state"], feed)[0]), mask)


def prepare(checkpoint: Path, directory: Path, settings: Mapping[str, Any]) -> None:
    """Writes the exported and quantized graph."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        exported = Path(scratch) / _GRAPH
        _export(checkpoint, exported)
        quantize_dynamic(
            exported,
            directory / _GRAPH,
            per_channel=True,
            reduce_range=False,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False, "MatMulConstBOnly": False},
        )


def open_model(source: Path, threads: int, settings: Mapping[str, Any]) -> RecipePeer:
    """The graph with ONNX Runtime's default optimisations."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return RecipePeer(ort.InferenceSession(source / _GRAPH, options, providers=["CPUExecutionProvider"]))


def _export(checkpoint: Path, path: Path) -> None:
    import torch

    from pplx_bench.speed.peers.stock import States, load_stock

    model = States(load_stock(checkpoint, torch.float32))
    ids = torch.arange(32).reshape(2, 16)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    dynamic = {name: {0: "batch", 1: "tokens"} for name in ("input_ids", "attention_mask", "last_hidden_state")}
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing and the exporter's own deprecation
        torch.onnx.export(
            model,
            (ids, mask),
            str(path),
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state"],
            dynamic_axes=dynamic,
            opset_version=_OPSET,
            dynamo=False,
        )
