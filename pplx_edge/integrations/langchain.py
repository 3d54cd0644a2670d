"""Use a pplx-edge model as the embeddings of LangChain."""

from typing import Any

from langchain_core.embeddings import Embeddings

from pplx_edge import load
from pplx_edge.integrations.vectors import encode_as_lists


class EdgeEmbeddings(Embeddings):
    """LangChain embeddings computed by a pplx-edge model on this machine.

    Vectors are the int8 codes as floats, to be compared by cosine. For a store that uses the inner product, set
    `normalize=True`, because the codes are not of unit length. `options` are those of `pplx_edge.load`.
    """

    def __init__(self, model: str = "nano", *, normalize: bool = False, **options: Any):
        self.model, self.normalize = load(model, **options), normalize

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text."""
        return encode_as_lists(self.model, texts, normalize=self.normalize)

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query. Queries and documents are encoded alike."""
        return self.embed_documents([text])[0]
