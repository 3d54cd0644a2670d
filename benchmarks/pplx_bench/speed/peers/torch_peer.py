"""Stock transformers in torch, fp32 or bf16: sdpa attention, no causal mask, and no mask at all without padding."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3Model

from pplx_bench.speed.peers import Encode
from pplx_bench.speed.peers.batches import batch_ways
from pplx_bench.speed.peers.stock import load_stock, require_bidirectional

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchPeer:
    """The stock model; means are taken in torch, so that only they are copied out."""

    def __init__(self, model: Qwen3Model):
        self._model = model

    def ways(self, rows: list[np.ndarray]) -> dict[str, Encode]:
        return batch_ways(self._encode, rows)

    def _encode(self, ids: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        with torch.inference_mode():
            visible = None if mask is None else torch.from_numpy(mask)
            states = self._model(
                input_ids=torch.from_numpy(ids), attention_mask=visible, use_cache=False
            ).last_hidden_state
            if visible is None:
                return states.mean(dim=1, dtype=torch.float32).numpy()
            weights = visible[:, :, None].float()
            return ((states.float() * weights).sum(dim=1) / weights.sum(dim=1)).numpy()


def open_model(source: Path, threads: int, settings: Mapping[str, Any]) -> TorchPeer:
    """The checkpoint in stock transformers."""
    torch.set_num_threads(threads)
    model = load_stock(source, _DTYPES[settings["dtype"]])
    require_bidirectional(model)
    return TorchPeer(model)
