"""The modules that stock sentence-transformers needs in the directory of a model to return our vectors.

| `vectors` | output of `SentenceTransformer(directory).encode` | needs |
|---|---|---|
| `means` | the means before tanh | nothing |
| `codes` | `127 * tanh(mean)` as floats that round to our int8 codes | nothing: two stock Dense modules |
| `int8` | the int8 codes | `trust_remote_code=True`: a small module next to the weights |
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from pplx_edge import layout
from pplx_edge.spec import ModelSpec
from pplx_edge.vectors.codes import INT8_SCALE

VECTORS = ("means", "codes", "int8")
TANH, SCALE = "2_Tanh", "3_Scale"
REMOTE = "st_quantize"
FOLDERS_AND_FILES = {layout.MODULES, layout.POOLING, TANH, SCALE, f"{REMOTE}.py"}
_STOCK = "sentence_transformers.models."

_REMOTE_CODE = f'''"""int8 vectors inside sentence-transformers, for `trust_remote_code=True`."""

import torch


class FlexibleQuantizer(torch.nn.Module):
    """`round(127 * tanh(mean))` of sentence embeddings, int8."""

    def forward(self, features, **_):
        codes = torch.round({INT8_SCALE} * torch.tanh(features["sentence_embedding"].float()))
        features["sentence_embedding"] = codes.to(torch.int8)
        return features

    @classmethod
    def load(cls, *_, **__):
        return cls()

    def save(self, *_, **__):
        pass
'''


def write_modules(folder: Path, spec: ModelSpec, vectors: str) -> None:
    """Write `modules.json` and the modules that it names to the directory of a model."""
    kinds = [("", "Transformer"), (layout.POOLING, "Pooling")]
    pooling = {
        "word_embedding_dimension": spec.hidden_size,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "include_prompt": True,
    }
    _write_json(folder / layout.POOLING_CONFIG, pooling)
    if vectors == "codes":
        kinds += [(TANH, "Dense"), (SCALE, "Dense")]
        _write_dense(folder / TANH, spec.dim, 1.0, "torch.nn.modules.activation.Tanh")
        _write_dense(folder / SCALE, spec.dim, float(INT8_SCALE), "torch.nn.modules.linear.Identity")
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": _STOCK + kind}
        for number, (path, kind) in enumerate(kinds)
    ]
    if vectors == "int8":
        modules.append({"idx": 2, "name": "2", "path": "2_Quantizer", "type": f"{REMOTE}.FlexibleQuantizer"})
        (folder / f"{REMOTE}.py").write_text(_REMOTE_CODE)
    _write_json(folder / layout.MODULES, modules)


def _write_dense(folder: Path, dim: int, factor: float, activation: str) -> None:
    config = {"in_features": dim, "out_features": dim, "bias": False, "activation_function": activation}
    _write_json(folder / layout.CONFIG, config)
    weights = folder / layout.WEIGHTS
    save_file({"linear.weight": factor * torch.eye(dim)}, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # the library writes for the owner alone


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
