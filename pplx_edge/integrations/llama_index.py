"""Use a pplx-edge model as the embedding model of LlamaIndex."""

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import PrivateAttr

from pplx_edge import Embedder, load
from pplx_edge.integrations.vectors import encode_as_lists


class EdgeEmbedding(BaseEmbedding):
    """A LlamaIndex embedding model computed by a pplx-edge model on this machine.

    Vectors are the int8 codes as floats, to be compared by cosine; with `normalize=True` they have unit length. The
    other `options` are those of `pplx_edge.load`.
    """

    normalize: bool = False
    _edge: Embedder = PrivateAttr()

    def __init__(self, model: str = "nano", *, normalize: bool = False, embed_batch_size: int = 256, **options: Any):
        super().__init__(model_name=model, embed_batch_size=embed_batch_size, normalize=normalize)  # type: ignore[call-arg]
        self._edge = load(model, **options)

    @classmethod
    def class_name(cls) -> str:
        """Return the name under which LlamaIndex stores the class."""
        return "EdgeEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return encode_as_lists(self._edge, texts, normalize=self.normalize)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)  # queries and documents are encoded alike

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)
