"""sentence-transformers in fp32 or bf16: its Transformer and Pooling modules on the checkpoint, with a mask always."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from pplx_bench.speed.peers import Encode
from pplx_bench.speed.peers.batches import batch_ways
from pplx_bench.speed.peers.stock import require_bidirectional
from pplx_edge.integrations import transformers


class SentencePeer:
    """The two modules, fed with ids, so that tokenization is not timed."""

    def __init__(self, model: SentenceTransformer):
        self._model = model

    def ways(self, rows: list[np.ndarray]) -> dict[str, Encode]:
        return batch_ways(self._encode, rows)

    def _encode(self, ids: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        visible = np.ones_like(ids) if mask is None else mask
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(visible)}
        with torch.inference_mode():
            return self._model(features)["sentence_embedding"].float().numpy()


def open_model(source: Path, threads: int, settings: Mapping[str, Any]) -> SentencePeer:
    """The checkpoint in sentence-transformers, without code from the repository."""
    torch.set_num_threads(threads)
    transformers.register()
    encoder: Any = Transformer(str(source), model_kwargs={"dtype": settings["dtype"]})
    require_bidirectional(encoder.model)
    pooling = Pooling(encoder.get_embedding_dimension(), "mean")
    return SentencePeer(SentenceTransformer(modules=[encoder, pooling], device="cpu").eval())
