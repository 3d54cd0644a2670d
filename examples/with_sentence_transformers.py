"""Uses pplx-edge where a SentenceTransformer is expected.

`EdgeSentenceTransformer` is a SentenceTransformer whose vectors come from pplx-edge, so `similarity`, the helpers in
`sentence_transformers.util` and libraries that call `encode` work with it. It cannot be trained or saved. The int8
codes are returned as float32, because most callers expect floats; compare them by cosine.

    pip install pplx-edge sentence-transformers
    python with_sentence_transformers.py "when do I have to pay the rent?"
"""

import sys

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import semantic_search

import pplx_edge

PASSAGES = [
    "The rent is due on the first day of each month.",
    "Preheat the oven to 220 degrees before baking the bread.",
    "The train from Berlin to Munich takes about four hours.",
    "Cats sleep for most of the day.",
    "Python lists can be sorted in place with the sort method.",
]


class EdgeSentenceTransformer(SentenceTransformer):
    """A SentenceTransformer that encodes with a pplx-edge model."""

    def __init__(self, model: str = "nano"):
        super().__init__(modules=[torch.nn.Identity()], device="cpu", similarity_fn_name="cosine")
        self.edge = pplx_edge.load(model)

    def encode(self, sentences, *, convert_to_tensor=False, normalize_embeddings=False, truncate_dim=None, **_):
        """Return float32 vectors: one for a string, `[N, D]` for a list. Other options have no effect."""
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        vectors = self.edge.encode(texts, dim=truncate_dim).astype(np.float32)
        if normalize_embeddings:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        vectors = vectors[0] if isinstance(sentences, str) else vectors
        return torch.from_numpy(vectors) if convert_to_tensor else vectors

    # pplx-embed models use no prompts, so queries and documents are encoded alike.
    encode_query = encode_document = encode

    def get_embedding_dimension(self) -> int:
        """Return the number of components of a vector."""
        return self.edge.dim

    get_sentence_embedding_dimension = get_embedding_dimension  # its older name


if __name__ == "__main__":
    question = " ".join(sys.argv[1:]) or "how long is the train ride to Munich?"
    model = EdgeSentenceTransformer()
    query = model.encode_query(question, convert_to_tensor=True)
    for hit in semantic_search(query, model.encode_document(PASSAGES, convert_to_tensor=True), top_k=3)[0]:
        print(f"{hit['score']:.3f}  {PASSAGES[hit['corpus_id']]}")
