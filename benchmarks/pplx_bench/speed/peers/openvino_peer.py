"""OpenVINO on the CPU, int8 weights per channel; activations quantized statically by NNCF, or dynamically as it runs.

static: `nncf.quantize` for transformers (SmoothQuant, calibrated on seeded random ids), the setting of optimum-intel's
full quantization. dynamic: `nncf.compress_weights` and the plugin's dynamic quantization in groups of 256 inputs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov

from pplx_bench.speed.peers import Encode
from pplx_bench.speed.peers.batches import batch_ways, masked_means
from pplx_edge.spec import ModelSpec

_GRAPH = "model.xml"
_CALIBRATION_ROWS, _CALIBRATION_TOKENS = 16, 128
_DYNAMIC_GROUP = "256"  # inputs that share an activation scale: the fastest of 32 to 3072 where this was tried


class OpenVinoPeer:
    """The compiled model and one request."""

    def __init__(self, compiled: ov.CompiledModel):
        self._request = compiled.create_infer_request()

    def ways(self, rows: list[np.ndarray]) -> dict[str, Encode]:
        return batch_ways(self._encode, rows)

    def _encode(self, ids: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids) if mask is None else mask}
        return masked_means(self._request.infer(feed, share_inputs=True, share_outputs=True)[0], mask)


def prepare(checkpoint: Path, directory: Path, settings: Mapping[str, Any]) -> None:
    """Writes the quantized model."""
    import nncf

    model = _exported(checkpoint)
    if settings["activations"] == "static":
        rng = np.random.default_rng(0)
        vocab_size = ModelSpec.from_directory(checkpoint).vocab_size
        rows = [rng.integers(0, vocab_size, (1, _CALIBRATION_TOKENS)) for _ in range(_CALIBRATION_ROWS)]
        dataset = nncf.Dataset([{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in rows])
        kind = nncf.ModelType.TRANSFORMER
        model = nncf.quantize(model, dataset, subset_size=_CALIBRATION_ROWS, model_type=kind)
    model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)  # what is not int8 yet
    ov.save_model(model, directory / _GRAPH, compress_to_fp16=False)


def open_model(source: Path, threads: int, settings: Mapping[str, Any]) -> OpenVinoPeer:
    """The model compiled for the CPU. What is not quantized runs in bf16 where the processor has it: the default."""
    config = {"INFERENCE_NUM_THREADS": str(threads), "PERFORMANCE_HINT": "LATENCY"}
    if settings["activations"] == "dynamic":
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _DYNAMIC_GROUP
    return OpenVinoPeer(ov.Core().compile_model(source / _GRAPH, "CPU", config))


def _exported(checkpoint: Path) -> ov.Model:
    import torch

    from pplx_bench.speed.peers.stock import States, load_stock

    ids = torch.arange(32).reshape(2, 16)
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        model = ov.convert_model(States(load_stock(checkpoint, torch.float32)), example_input=example)
    for port, name in zip(model.inputs, ("input_ids", "attention_mask"), strict=True):
        port.get_tensor().set_names({name})
    model.reshape({"input_ids": [-1, -1], "attention_mask": [-1, -1]})
    return model
