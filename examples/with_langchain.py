"""Uses pplx-edge as the embeddings of LangChain.

`EdgeEmbeddings` can be passed to any LangChain vector store. InMemoryVectorStore compares by cosine. For a store that
uses the inner product, set `normalize=True`, because the int8 codes are not of unit length.

    pip install pplx-edge langchain-core
    python with_langchain.py "when do I have to pay the rent?"
"""

import sys

import numpy as np
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import InMemoryVectorStore

import pplx_edge

PASSAGES = [
    "The rent is due on the first day of each month.",
    "Preheat the oven to 220 degrees before baking the bread.",
    "The train from Berlin to Munich takes about four hours.",
    "Cats sleep for most of the day.",
    "Python lists can be sorted in place with the sort method.",
]


class EdgeEmbeddings(Embeddings):
    """LangChain embeddings computed by a pplx-edge model."""

    def __init__(self, model: str = "nano", *, normalize: bool = False):
        self.model = pplx_edge.load(model)
        self.normalize = normalize

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text."""
        vectors = self.model.encode_document(texts).astype(np.float32)
        if self.normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        return vectors.tolist()

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query. Queries and documents are encoded alike."""
        return self.embed_documents([text])[0]


if __name__ == "__main__":
    question = " ".join(sys.argv[1:]) or "how long is the train ride to Munich?"
    store = InMemoryVectorStore(EdgeEmbeddings())
    store.add_texts(PASSAGES)
    for document, score in store.similarity_search_with_score(question, k=3):
        print(f"{score:.3f}  {document.page_content}")
